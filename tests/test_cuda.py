"""What CUDA computes is what the CPU computes, to rounding; a step waits for nothing; one device trains and resumes."""

import numpy as np
import pytest
import torch

from swarmbook.config import run_config
from swarmbook.methods.model_size import Shape
from swarmbook.methods.routing import in_order
from swarmbook.records.store import Store
from swarmbook.runs import run
from swarmbook.training import llama
from swarmbook.training.cuda_graph import AFTER
from swarmbook.training.fleet import Fleet
from swarmbook.training.inner_optimizer import InnerOptimizer
from swarmbook.training.packing import packs
from swarmbook.training.trainer import Pack

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPE = Shape(stages=4, layers_per_stage=2, width=64, heads=4, hidden=96, vocabulary=101)
R, S, M, B, T = 3, SHAPE.stages, 4, 2, 32
TINY = {
    "data": "stories_toy", "stages": 4, "width": 32, "heads": 2, "hidden": 64, "sequence": 16, "microbatches": 2,
    "batch": 2, "steps": 20, "log_every": 1, "evaluate_every": 5, "held_out": 4, "precision": "fp32",
}  # fmt: skip


def fleet_of(device="cuda", **options):
    return Fleet(SHAPE, list(range(R)), device=device, **{"compile": False, "precision": "fp32", **options})


def batch(seed=0, replicas=R):
    return np.random.default_rng(seed).integers(SHAPE.vocabulary, size=(replicas, M, B, T + 1))


def hops(seed=0):
    """At each position another permutation of the replicas."""
    cells = in_order(R, S, M, None)
    for p in range(S):
        cells[p, ..., 0] = np.random.default_rng(seed + p).permutation(R)[:, None]
    return cells


def swapped():
    cells = in_order(R, S, M, None)
    cells[:, :, 1::2, 1] = np.array([1, 0, 3, 2])[:, None, None]
    return cells


def skipping():
    cells = in_order(R, S, M, None)
    cells[1, :, 0, 1] = cells[3, 1, :, 1] = -1
    return cells


def gradients_of(fleet):
    found = fleet.layer_gradients | fleet.outer_gradients
    return torch.cat([g.double().cpu().flatten() for g in found.values()])


def apart(a, b):
    """Distance of two fleets' gradients, as a share of their length."""
    a, b = gradients_of(a), gradients_of(b)
    return float((a - b).norm() / b.norm())


ROUTES = [None, hops(), swapped(), skipping()]


@pytest.mark.parametrize("cells", ROUTES, ids=["in order", "hops", "swapped", "skipping"])
@pytest.mark.parametrize("compile", [False, True])
def test_cuda_gives_the_losses_and_gradients_of_the_cpu(cells, compile):
    ours, reference = fleet_of(compile=compile), fleet_of("cpu")
    for at_once in (None, 2):
        a, b = (f.gradients(batch(), cells, at_once) for f in (ours, reference))
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-5)
        assert apart(ours, reference) < 1e-5
    a, b = (f.nats(batch()[:, 0], None) for f in (ours, reference))
    torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cells", ROUTES, ids=["in order", "hops", "swapped", "skipping"])
@pytest.mark.parametrize("compile", [False, True])
def test_bf16_is_fp32_to_its_rounding(cells, compile):
    ours, reference = fleet_of(compile=compile, precision="bf16"), fleet_of("cpu")
    a, b = (f.gradients(batch(), cells) for f in (ours, reference))
    torch.testing.assert_close(a.cpu(), b, rtol=2e-3, atol=0)
    assert 1e-5 < apart(ours, reference) < 2e-2  # a distance of 0 would be another precision


@pytest.mark.parametrize("kernel, dimensions", [("CUDNN_ATTENTION", 4), ("FLASH_ATTENTION", 3), ("MATH", 1)])
@pytest.mark.parametrize("length, width", [(32, 16), (300, 64), (1024, 128)])
def test_every_kernel_gives_what_autograd_gives_in_fp32(kernel, dimensions, length, width):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    sizes = (6, length, 4, width)  # laid out as a layer does
    q, k, v, do = (torch.randn(sizes, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(4))
    with sdpa_kernel(getattr(SDPBackend, kernel)):
        o, logsumexp = llama.attention(q, k, v)
        ours = (o, *llama.attention_backward(do, q, k, v, o, logsumexp))
    assert logsumexp.dim() == dimensions
    exact = [t.float().requires_grad_() for t in (q, k, v)]
    with sdpa_kernel(SDPBackend.MATH):
        o = torch.nn.functional.scaled_dot_product_attention(*exact, is_causal=True)
    for a, b in zip(ours, (o, *torch.autograd.grad(o, exact, do.float())), strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-2


def test_heads_too_narrow_for_flash_attention_train_as_well():
    shape = Shape(stages=2, layers_per_stage=1, width=24, heads=4, hidden=32, vocabulary=101)
    ours, reference = (Fleet(shape, [1], d, p, False) for d, p in (("cuda", "bf16"), ("cpu", "fp32")))
    tokens = batch()[:1]
    torch.testing.assert_close(ours.gradients(tokens).cpu(), reference.gradients(tokens), rtol=5e-3, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cells", ROUTES, ids=["in order", "hops", "swapped", "skipping"])
def test_a_step_replayed_from_a_graph_is_the_step(precision, cells):
    fleet, eager = (fleet_of(precision=precision) for _ in range(2))
    for seed in range(AFTER + 3):
        eager._graphed._key = None  # never seen before
        a, b = (f.gradients(batch(seed), cells) for f in (fleet, eager))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
        assert apart(fleet, eager) < 1e-6
        assert (fleet._graphed._graph is not None) == (seed >= AFTER) and eager._graphed._graph is None
        for f in (fleet, eager):
            f.initialise(1, 2, seed)  # weights are written in place, and read anew


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("cells", [None, hops()], ids=["in order", "hops"])
def test_a_step_waits_for_nothing(cells, replayed, monkeypatch):
    monkeypatch.setattr("swarmbook.training.fleet._GRAPH", {"cuda": replayed * 1e18})
    fleet = fleet_of(precision="bf16", compile=True)
    adam = InnerOptimizer(fleet, 1e-3)

    def step(seed):
        losses = fleet.gradients(batch(seed), cells)
        fleet.clip(1.0)
        adam.lr_scale[0, 0] = 1.0 + seed  # cells of their own rate
        adam.step()
        return losses

    for seed in range(AFTER + 2):
        step(seed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = step(9)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(losses).all()


def test_adam_updates_as_on_the_cpu():
    """As a whole: an entry whose gradient is near 0 goes either way, as rounding has it."""
    fleets, start = (fleet_of(), fleet_of("cpu")), fleet_of("cpu").state_dict()
    for fleet in fleets:
        adam = InnerOptimizer(fleet, 1e-3)
        for step in range(3):
            fleet.gradients(batch(step))
            fleet.clip(1.0)
            adam.lr_scale[1, 2] = 2.0
            adam.step()
            if step == 1:
                adam.reset(0, 1)
    ours, reference = (f.state_dict() for f in fleets)
    for name, weight in reference.items():
        assert (ours[name].cpu() - weight).norm() < 1e-3 * (weight - start[name]).norm()


def test_runs_of_different_routes_train_apart():
    runs = [run_config(**TINY, route=name, seed=seed) for name in ("in order", "swapped ends") for seed in range(2)]
    assert [len(pack) for pack in packs(runs, "cuda")] == [2, 2]
    assert [len(pack) for pack in packs(runs, "cpu")] == [4]


def test_compiled_layers_know_the_logsumexp(monkeypatch):
    """Else the way back would go through attention once more."""
    monkeypatch.setattr(
        llama, "attention_backward", lambda do, q, k, v, o, logsumexp: dims.append(logsumexp.dim()) or (q, k, v)
    )
    dims: list[int] = []
    for compile in (False, True):
        fleet_of(precision="bf16", compile=compile).gradients(batch())
    assert set(dims) <= {3, 4} and len(dims) == SHAPE.layers + 1  # every layer, then the one compilation


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"recovery": "CheckFree", "lost_stages": ((3, 2), (8, 3))},
        {"replicas": 4, "route": "random replicas", "sync": "NoLoCo", "sync_every": 4, "common_start": True},
        {"replicas": 2, "sync": "all-reduce", "common_start": True},
    ],
    ids=["plain", "CheckFree", "NoLoCo", "all-reduce"],
)
def test_runs_train_as_on_the_cpu_and_go_on_after_a_kill(tmp_path, fields):
    config = run_config(**{**TINY, **fields})
    ours, reference = (
        run([config], device=device, show=False, store=Store(tmp_path / device)).records[0].metrics
        for device in ("cuda", "cpu")
    )
    for metric in ("training loss", "validation loss", "gradient norm"):
        a, b = (table.loc[table["metric"] == metric, "value"].to_numpy() for table in (ours, reference))
        np.testing.assert_allclose(a, b, rtol=2e-3)
    progress = Store(tmp_path / "killed").progress([config.key])
    pack = Pack([config], progress, "cuda")
    for _ in range(10):
        pack.advance()
    pack.save()
    expected = [pack.advance() or float(pack.losses[-1].mean()) for _ in range(5)]
    again = Pack([config], Store(tmp_path / "killed").progress([config.key]), "cuda")
    assert again.step == 10
    assert [again.advance() or float(again.losses[-1].mean()) for _ in range(5)] == expected
