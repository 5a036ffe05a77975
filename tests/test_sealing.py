"""Nothing false is ever sealed: what lib/README.md promises of a kept run holds whatever is done to it in training.

The cases one by one are in `test_runs.py`, `test_store.py`, `test_checkpoint.py` and `test_data.py`.
"""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmbook.config import run_config
from swarmbook.data import tokenization
from swarmbook.errors import ConfigError, StoreError, TrainingError
from swarmbook.methods.measurements import MEASUREMENTS
from swarmbook.methods.recovery import RULES, Strategy
from swarmbook.records.store import Store
from swarmbook.reproduction import papers, recorded_runs, verify
from swarmbook.runs import run
from swarmbook.training import bookkeeping, logging_plan, trainer

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "data": "stories_toy", "tokenizer": "bytes", "stages": 2, "width": 8, "heads": 2, "hidden": 8, "sequence": 8,
    "microbatches": 1, "steps": 8, "log_every": 1, "evaluate_every": 2, "held_out": 4,
}  # fmt: skip


class Killed(BaseException):
    pass


def kill(root, rng):
    raise Killed


def delete(name):
    return lambda root, rng: shutil.rmtree(root / name, ignore_errors=True)


def flip(pattern):
    """Change one byte of a file, anywhere."""

    def act(root, rng):
        for path in sorted(root.glob(pattern)):
            content = bytearray(path.read_bytes())
            if content:
                content[rng.integers(len(content))] ^= 1 << rng.integers(8)
                path.write_bytes(content)

    return act


def cut(root, rng):
    for path in root.glob("partial/*/metrics.jsonl"):
        path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size + 1)])


def rows_of_another(root, rng):
    for path in root.glob("partial/*/metrics.jsonl"):
        row = {"run": 0, "step": int(rng.integers(9)), "metric": "training loss", "stage": 0, "label": "", "value": 1.5}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def unlink(pattern):
    return lambda root, rng: [path.unlink() for path in root.glob(pattern) if rng.integers(2)]


def second(root, rng):
    """Another process, which finds no lock, trains the same run to its end."""
    shutil.rmtree(root / "locks", ignore_errors=True)
    run([CONFIG], show=False, store=Store(root))


def second_begins(root, rng):
    """It does so and is killed on its way."""
    shutil.rmtree(root / "locks", ignore_errors=True)
    store, begun = Store(root), []
    with store.claim([CONFIG.key]) as mine:
        if mine:
            pack = trainer.Pack([CONFIG], store.progress(mine), "cpu")
            while pack.step < CONFIG.steps and len(begun) < 3:
                begun.append(pack.step)
                ADVANCE(pack)
                pack.measure()
                pack.save()


def another_pack(root, rng):
    """The work in progress of another run, under this one's name."""
    other = run_config(**{**TINY, "lr": 0.1})
    store = Store(root / "other")
    progress = store.progress([other.key])
    pack = trainer.Pack([other], progress, "cpu")
    while pack.step < 6:
        ADVANCE(pack)
        pack.measure()
    pack.save()
    for folder in root.glob("partial/*"):
        for path in progress.folder.iterdir():
            if path.name != "pack.json" or rng.integers(2):
                shutil.copy(path, folder / path.name)
    shutil.rmtree(root / "other")


ACTS = {
    "kill": kill,
    "delete the locks": delete("locks"),
    "delete the work in progress": delete("partial"),
    "delete the store": delete("."),
    "flip a bit of the stream": flip("partial/*/metrics.jsonl"),
    "flip a bit of the checkpoint": flip("partial/*/checkpoint.json"),
    "flip a bit of the weights": flip("partial/*/*.pt"),
    "flip a bit of the pack's name": flip("partial/*/pack.json"),
    "flip a bit of finished runs": flip("*.parquet"),
    "cut the stream": cut,
    "rows of another": rows_of_another,
    "delete some files": unlink("partial/*/*"),
    "a second trainer": second,
    "a second trainer that dies": second_begins,
    "another pack's files": another_pack,
}
ADVANCE = trainer.Pack.advance
CONFIG = run_config(**TINY)


@pytest.fixture(scope="module")
def true(tmp_path_factory):
    """The rows of the run when nobody disturbs it."""
    (record,) = run([CONFIG], show=False, store=Store(tmp_path_factory.mktemp("true"))).records
    return record.metrics


def disturbed(root, acts, rng):
    """Train the run while things are done to its store, at steps of the whole history; after a kill once more."""
    taken = []

    def advance(pack):
        taken.append(pack.step)
        for _, name in [act for act in acts if act[0] == len(taken)]:
            ACTS[name](root, rng)
        ADVANCE(pack)

    for _ in range(len(acts) + 1):
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
                patch.setattr(trainer.Pack, "advance", advance)
                return run([CONFIG], show=False, store=Store(root)).records[0].metrics
        except Killed:
            continue
        except StoreError:  # it says what is wrong, and keeps nothing
            return None
    return None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    acts=st.lists(st.tuples(st.integers(1, 16), st.sampled_from(sorted(ACTS))), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_whatever_is_done_to_a_store_nothing_false_is_kept(true, tmp_path_factory, acts, seed):
    root = tmp_path_factory.mktemp("store")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given_back = disturbed(root, acts, np.random.default_rng(seed))
        kept = Store(root).get(CONFIG.key)
    for metrics in (given_back, kept and kept.metrics):
        if metrics is not None:
            pd.testing.assert_frame_equal(metrics, true, check_exact=True)
    shutil.rmtree(root)


# What the key says is what was trained


def test_data_that_change_while_runs_wait_for_their_turn_are_told_before_training(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    content = tokenization._tokenizer_bytes("bytes")
    path.write_bytes(content)
    first, late = (run_config(**{**TINY, "tokenizer": str(path), "steps": steps}) for steps in (2, 4))
    key, train = late.key, trainer.train

    def then_edited(pack, *rest):
        trained = train(pack, *rest)
        path.write_bytes(content + b"\n")
        return trained

    monkeypatch.setattr(trainer, "train", then_edited)
    store = Store(tmp_path / "store")
    with pytest.raises(ConfigError, match=f"run {key} is not trained: its data, its tokenizer or a rule"):
        run([first, late], show=False, store=store)
    assert store.get(key) is None and len(list(store.root.glob("*.parquet"))) == 1


def test_a_rule_that_is_edited_while_its_run_waits_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(RULES, "mine", Strategy(lambda lost: lost.mix({lost.neighbours[0]: 1.0})))
    fields = {**TINY, "recovery": "mine", "stages": 4, "lost_stages": ((1, 2),)}
    configs = [run_config(**{**fields, "steps": steps}) for steps in (2, 4)]
    train = trainer.train

    def then_edited(pack, *rest):
        RULES["mine"] = Strategy(lambda lost: lost.mix({lost.neighbours[-1]: 1.0}))
        return train(pack, *rest)

    monkeypatch.setattr(trainer, "train", then_edited)
    with pytest.raises(ConfigError, match="a rule of your own was changed since this was started"):
        run(configs, show=False, store=Store(tmp_path))


def test_a_measurement_that_leaves_the_weights_changed_is_told(tmp_path, monkeypatch):
    def spoils(pack, asking):
        pack.fleet.stage(0, 1)["qkv"].mul_(1.01)
        return [(i, "mine", 0, "", 1.0) for i in asking]

    monkeypatch.setitem(MEASUREMENTS, "spoils", spoils)
    config = run_config(**TINY, measurements=["spoils"])
    with pytest.raises(TrainingError, match="measurement 'spoils' left the weights changed"):
        run([config], show=False, store=Store(tmp_path), keep=True)
    assert Store(tmp_path).get(config.key) is None and Store(tmp_path).state(config.key) is None


def test_every_way_to_keep_a_run_asks_its_rows(tmp_path, monkeypatch):
    """`run` and `swarmbook.distributed` are all that put runs; a state is put only after its run's rows are right."""
    callers = [path for path in Path(trainer.__file__).parents[1].rglob("*.py") if "store.put(" in path.read_text()]
    callers = [path for path in callers if path.name != "store.py"]  # which only shows how
    assert sorted(path.name for path in callers) == ["__main__.py", "computed.py", "runs.py"]
    assert all("logging_plan.check(" in path.read_text() for path in callers if path.name != "computed.py")
    monkeypatch.setattr(logging_plan, "faults", lambda *_: ["a fault"])
    with pytest.raises(StoreError, match="a fault"):
        run([CONFIG], show=False, store=Store(tmp_path), keep=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_recorded_run_that_lacks_rows_is_a_fault(toy, tmp_path, true):
    """Whoever writes a file can make its checksum as well."""
    paper = papers.read_paper(toy())
    store = Store(paper.beside("runs"))
    config = CONFIG.model_dump(mode="json")
    store.put(CONFIG.key, config, true, {})
    assert recorded_runs.recorded(paper).faults == [] and CONFIG.key in recorded_runs.recorded(paper).runs
    store.put(CONFIG.key, config, true[true["step"] != 4].reset_index(drop=True), {})
    found = recorded_runs.recorded(paper)
    assert not found.runs
    assert (
        f"{CONFIG.key}.parquet has not the rows of its configuration: 1 rows of 'training loss' are" in found.faults[0]
    )


def test_a_run_that_went_on_elsewhere_says_where_it_had_been(tmp_path, monkeypatch):
    """Its bits are then nobody's alone, and `swarmbook verify` does not ask for them."""

    def until_killed(store):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
            patch.setattr(trainer.Pack, "advance", lambda pack: ADVANCE(pack) if pack.step < 5 else kill(None, None))
            with pytest.raises(Killed):
                run([CONFIG], show=False, store=store)

    here = bookkeeping.environment(torch.device("cpu"))
    there = {**here, "device": "cpu (ANOTHER)", "threads": 7}
    records = {}
    for name, first in (("here", here), ("there", there)):
        with monkeypatch.context() as patch:
            patch.setattr(bookkeeping, "environment", lambda device, first=first: first)
            until_killed(Store(tmp_path / name))
        (records[name],) = run([CONFIG], show=False, store=Store(tmp_path / name)).records
    assert "earlier" not in records["here"].provenance
    (place,) = records["there"].provenance["earlier"]
    assert json.loads(place)["device"] == "cpu (ANOTHER)" and records["there"].provenance["device"] == here["device"]
    assert verify.compare(records["here"], records["here"]).exact
    assert not verify.compare(records["there"], records["here"]).exact
