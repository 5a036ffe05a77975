"""The state of a run in parts is the whole, and each part what its rank needs."""

import pytest
import torch

from swarmbook.config import run_config
from swarmbook.distributed.mesh import meshes
from swarmbook.distributed.resharding import cut, joined, table
from swarmbook.records.store import Store
from swarmbook.runs import run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """Of 4 replicas x 4 stages, with two of three fragments on their way."""
    config = run_config(
        data="stories_toy", width=16, heads=2, hidden=32, sequence=8, microbatches=1, batch=1, replicas=4, stages=4,
        steps=11, log_every=11, evaluate_every=11, held_out=8,
        sync="NoLoCo", sync_every=6, fragments=3, delay=4, absent=0.3, common_start=True,
    )  # fmt: skip
    store = Store(tmp_path_factory.mktemp("store"))
    run([config], show=False, device="cpu", store=store, keep=True)
    return store.state(config.key)


def flat(state, name=""):
    """Tensors and numbers of a state by where they are in it."""
    if not isinstance(state, dict):
        return {name: state}
    return {key: value for part in state for key, value in flat(state[part], f"{name}/{part}").items()}


def assert_alike(one, other, atol=0.0):
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, other[name], rtol=0, atol=atol, msg=name)
        else:
            assert value == other[name], name


@pytest.mark.parametrize("apart", [False, True])  # a rank that has the norms of its own cells only
@pytest.mark.parametrize("mesh", meshes(4, 4))
def test_parts_joined_are_the_whole(state, mesh, apart):
    assert len(state["outer"]["arriving"]) == 2
    assert any(message.get("absent") and message["slow"] for message in state["outer"]["arriving"].values())
    parts = [cut(state, mesh, rank) for rank in range(mesh.ranks)]
    if apart:
        parts = [{**part, "norms": table(part["norms"], mesh, rank)} for rank, part in enumerate(parts)]
    assert_alike(joined(parts, mesh), state)
    sizes = [sum(weight.numel() for weight in part["fleet"].values()) for part in parts]
    assert sum(sizes) == sum(weight.numel() for weight in state["fleet"].values())


@pytest.mark.parametrize("mesh", meshes(4, 4))
def test_weights_of_one_replica_are_those_of_all(state, mesh):
    one = {"fleet": {name: w[:, :, :1] if "layers" in name else w[:1] for name, w in state["fleet"].items()}}
    whole = joined([cut(one, mesh, rank) for rank in range(mesh.ranks)], mesh)["fleet"]
    for name, weight in whole.items():
        torch.testing.assert_close(weight, one["fleet"][name].expand_as(state["fleet"][name]), rtol=0, atol=0)
