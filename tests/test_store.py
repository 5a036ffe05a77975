"""The store: what was put comes back, damage is never used, no run is trained twice, none is lost."""

import errno
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmbook.errors import LostProgress, StoreError
from swarmbook.records import locks
from swarmbook.records.atomic_files import clean, whole_file, write
from swarmbook.records.checkpoint import WorkInProgress
from swarmbook.records.keys import key_of
from swarmbook.records.store import Store, open_store

KEY, OTHER, THIRD = (key_of({"run": name}) for name in ("one", "other", "third"))
CONFIG = {"seed": 1, "lr": 1e-3, "recovery": "average", "rates": [0.05, 0.1], "plan": None}
PROVENANCE = {"torch": "2.13.0", "threads": 1, "seconds": 3.25}
TABLE = pd.DataFrame(
    {
        "step": np.arange(6, dtype="int64"),
        "metric": pd.Categorical(["loss", "perplexity"] * 3, categories=["perplexity", "loss", "unused"]),
        "value": [1.5, np.nan, -0.0, np.inf, 0.1 + 0.2, 5e-324],
        "small": np.float32([0.1, 2, 3, 4, 5, 6]),
        "stage": np.int8([0, 1, 2, 0, 1, 2]),
        "dead": [True, False] * 3,
        "note": pd.array(["", "ä", None, "x" * 50, "\x00", "b"], dtype="str"),
    }
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def put(store, key=KEY, value=0.0):
    return store.put(key, CONFIG, pd.DataFrame({"value": [value]}), PROVENANCE)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def absent(store, key=KEY):
    """That a damaged run is named and counts as absent."""
    with pytest.warns(UserWarning, match=f"{key}.parquet is damaged"):
        return store.get(key) is None


# What was put comes back


def test_round_trip(store):
    made = store.put(KEY, CONFIG, TABLE, PROVENANCE)
    for record in (made, store.get(KEY), Store(store.root).get(KEY)):
        assert (record.key, record.config, record.provenance) == (KEY, CONFIG, PROVENANCE)
        assert record.path == store.root / f"{KEY}.parquet"
        pd.testing.assert_frame_equal(record.metrics, TABLE, check_exact=True)
        assert np.signbit(record.metrics.value[2])
    assert files(store.root) == [f"{KEY}.parquet"]
    assert store.get(OTHER) is None
    other_reader = pd.read_parquet(made.path)
    assert list(other_reader.metric) == list(TABLE.metric)


CELLS = {
    "int64": st.integers(-(2**63), 2**63 - 1),
    "int8": st.integers(-128, 127),
    "float64": st.floats(),
    "float32": st.floats(width=32),
    "bool": st.booleans(),
    "str": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
}


@st.composite
def tables(draw):
    kinds = draw(st.lists(st.sampled_from(sorted(CELLS)), min_size=1, max_size=4))
    length = draw(st.integers(0, 20))
    columns = [draw(st.lists(CELLS[kind], min_size=length, max_size=length)) for kind in kinds]
    return pd.DataFrame(
        {
            f"{kind} {i}": pd.Series(column, dtype=kind)
            for i, (kind, column) in enumerate(zip(kinds, columns, strict=True))
        }
    )


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables(), st.booleans())
def test_any_table_comes_back(store, table, categorical):
    if categorical:
        table = table.astype({name: "category" for name in table if name.startswith("str")})
    store.put(KEY, CONFIG, table, PROVENANCE)
    pd.testing.assert_frame_equal(store.get(KEY).metrics, table, check_exact=True)


def test_small_and_fast(store):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "step": np.repeat(np.arange(500), 4),
            "metric": pd.Categorical(["loss", "validation loss", "norm", "rate"] * 500),
            "value": rng.normal(size=2000),
        }
    )
    keys = [key_of({"seed": seed}) for seed in range(10)]
    for key in keys:
        assert store.put(key, CONFIG, table, PROVENANCE).path.stat().st_size < 30_000
    start = time.process_time()
    assert all(len(store.get(key).metrics) == 2000 for key in keys * 10)
    assert time.process_time() - start < 1


def test_same_run_same_bytes(store, tmp_path):
    again = Store(tmp_path / "again").put(KEY, dict(reversed(CONFIG.items())), TABLE, PROVENANCE)
    assert store.put(KEY, CONFIG, TABLE, PROVENANCE).path.read_bytes() == again.path.read_bytes()


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"value": [1, "one"]}),
        pd.DataFrame({"value": [{1}]}),
        pd.DataFrame({"value": [1.0]}, index=[7]),
        pd.DataFrame({"value": pd.Categorical([1, 2])}),
        pd.DataFrame({3: [1.0]}),
        pd.DataFrame({"value": ["loss", None]}, dtype=object),
    ],
    ids=["mixed", "object", "index", "categories", "column", "object text"],
)
def test_what_would_not_come_back_is_refused(store, table):
    with pytest.raises((ValueError, TypeError)):
        store.put(KEY, CONFIG, table, PROVENANCE)
    assert not store.root.exists()


def test_key_of():
    assert key_of({"a": 1, "b": [0.5, None]}) == key_of({"b": [0.5, None], "a": 1})
    assert len({key_of({"a": value}) for value in (1, 1.0, True, "1", None, [1], {})}) == 7
    assert key_of({"a": 1}) == "015abd7f5cc57a2dd94b"  # a change here would throw away every recorded run
    with pytest.raises(ValueError, match=r"payload\.a\[1\] is nan"):
        key_of({"a": [0.0, float("nan")]})
    with pytest.raises(ValueError, match=r"payload\.a is -inf"):
        key_of({"a": float("-inf")})
    for value in ({1}, np.int64(1), np.float32(1), Path("x"), b"x", 1j):
        with pytest.raises(TypeError, match=r"payload\.a is a .*expected"):
            key_of({"a": value})
    with pytest.raises(TypeError, match=r"payload has the key 1; .* use '1'"):
        key_of({1: 1})


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "XYZ", KEY + "\n", KEY[:7], KEY + ".tmp"])
def test_what_is_no_key_is_refused(store, key):
    for use in (
        store.get,
        store.state,
        lambda key: put(store, key),
        lambda key: store.put_state(key, {}),
        lambda key: store.claim([key]).__enter__(),
    ):
        with pytest.raises(ValueError, match="is no key of a run"):
            use(key)


# Damage


def test_any_flipped_bit_is_found(store):
    path = store.put(KEY, CONFIG, TABLE, PROVENANCE).path
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.choice(len(whole), 400, replace=False):
        torn = bytearray(whole)
        torn[position] ^= 1 << rng.integers(8)
        path.write_bytes(torn)
        assert absent(store)
    path.write_bytes(whole)
    assert store.get(KEY)


def test_any_truncation_is_found(store):
    path = put(store).path
    whole = path.read_bytes()
    for size in {0, 1, 4, len(whole) // 2, len(whole) - 9, len(whole) - 1}:
        path.write_bytes(whole[:size])
        assert absent(store)
    for longer in (whole + b"\x00", whole * 2, b"\x00" * len(whole), b"not a run"):
        path.write_bytes(longer)
        assert absent(store)


def test_run_under_another_name(store):
    put(store).path.rename(store.root / f"{OTHER}.parquet")
    with pytest.warns(UserWarning, match=f"{OTHER}.parquet is damaged and not used: it holds run {KEY}"):
        assert store.get(OTHER) is None


def test_folder_in_place_of_a_run(store):
    (store.root / f"{KEY}.parquet").mkdir(parents=True)
    assert absent(store)
    with pytest.raises(StoreError, match=f"cannot write .*{KEY}.parquet"):
        put(store)
    assert files(store.root) == []


def test_edited_by_another_writer(store):
    path = put(store).path
    pd.read_parquet(path).assign(value=1.0).to_parquet(path)
    assert absent(store)


def test_damaged_run_is_claimed_and_replaced(store):
    path = put(store).path
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="training the run again replaces it"), store.claim([KEY]) as mine:
        assert mine == [KEY]
        put(store, value=2.0)
    assert store.get(KEY).metrics.value[0] == 2.0


# Recorded runs, fresh runs, publishing


def test_recorded_first(store, tmp_path):
    recorded = tmp_path / "runs"
    put(Store(recorded), value=1.0)
    put(store, value=2.0)
    both = Store(store.root, [tmp_path / "nowhere", recorded])
    assert both.get(KEY).metrics.value[0] == 1.0
    with both.claim([KEY, OTHER]) as mine:
        assert mine == [OTHER]
    damaged = (recorded / f"{KEY}.parquet").read_bytes()[:-1]
    (recorded / f"{KEY}.parquet").write_bytes(damaged)
    with pytest.warns(UserWarning, match=f"{recorded}.*restore it"):
        assert both.get(KEY).metrics.value[0] == 2.0
    assert (recorded / f"{KEY}.parquet").read_bytes() == damaged


def test_fresh(store, tmp_path):
    recorded = tmp_path / "runs"
    put(Store(recorded), value=1.0)
    put(store, value=2.0)
    for fresh in (True, "token"):
        new = Store(store.root, [recorded], fresh=fresh)
        assert new.get(KEY) is None
        with new.claim([KEY]) as mine:
            assert mine == [KEY]
            put(new, value=3.0)
        assert new.get(KEY).metrics.value[0] == 3.0
    assert Store(store.root, [recorded], fresh="token").get(KEY).metrics.value[0] == 3.0
    assert Store(store.root, [recorded], fresh="another").get(KEY) is None
    assert Store(store.root, fresh=True).get(KEY) is None
    assert Store(store.root, [recorded]).get(KEY).metrics.value[0] == 1.0
    assert Store(store.root).get(KEY).metrics.value[0] == 3.0


def test_fresh_resumes_only_its_own_progress(store):
    stale = store.progress([KEY])
    stale.append([{"step": 1}])
    stale.save({}, 1)
    fresh = Store(store.root, fresh="token")
    assert fresh.packs() == []
    progress = fresh.progress([KEY])
    assert progress.load() is None
    progress.save({}, 7)
    again = Store(store.root, fresh="token")
    assert again.packs() == [[KEY]]
    assert again.progress([KEY]).load() == ({}, 7)


def test_open_store(tmp_path, monkeypatch):
    monkeypatch.delenv("SWARMBOOK_STORE", raising=False)
    monkeypatch.delenv("SWARMBOOK_FRESH", raising=False)
    assert open_store().root == Path(__file__).parents[1] / "runs" / "store"
    monkeypatch.setenv("SWARMBOOK_STORE", str(tmp_path))
    put(open_store())
    assert open_store().get(KEY)
    for value, found in (("0", True), ("", True), ("1", False), ("token", False)):
        monkeypatch.setenv("SWARMBOOK_FRESH", value)
        assert bool(open_store().get(KEY)) is found
    monkeypatch.setenv("SWARMBOOK_FRESH", "1")
    put(open_store())
    assert open_store().get(KEY)  # this process put it


def test_open_store_looks_at_other_profiles_after_the_recorded_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SWARMBOOK_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("SWARMBOOK_FRESH", "0")
    for folder, keys in {"runs": [KEY], "runs.gpu": [KEY, OTHER], "runs.smoke": [OTHER], "runs-old": [THIRD]}.items():
        for key in keys:
            put(Store(tmp_path / folder), key)
    monkeypatch.chdir(tmp_path)
    for recorded in ("runs", tmp_path / "runs"):
        store = open_store([recorded])
        assert store.get(KEY).path.parent.resolve() == tmp_path / "runs"
        assert store.get(OTHER).path.parent.resolve() == tmp_path / "runs.gpu"
        assert store.get(THIRD) is None
    Path("runs.gpu", f"{OTHER}.parquet").unlink()
    assert open_store(["runs"]).get(OTHER).path.parent == Path("runs.smoke")


def test_publish(store, tmp_path):
    recorded = tmp_path / "papers" / "runs"
    for key in (KEY, OTHER, THIRD):
        put(store, key)
    store.publish([KEY, OTHER], recorded)
    (recorded / "README.md").write_text("kept")
    (recorded / f"{KEY}.parquet.0123abcd.tmp").write_text("left by a killed process")
    store.publish([KEY, THIRD], recorded, exclusive=True)
    assert files(recorded) == sorted(["README.md", f"{KEY}.parquet", f"{THIRD}.parquet"])
    empty = Store(tmp_path / "empty", [recorded])
    assert empty.get(KEY).path.parent == recorded
    before = files(recorded)
    empty.publish([KEY, THIRD], recorded, exclusive=True)
    with pytest.raises(StoreError, match=f"cannot publish {OTHER}: not in"):
        empty.publish([KEY, OTHER], recorded, exclusive=True)
    assert files(recorded) == before


# States


def state_of(value):
    return {"fleet": {"wq": torch.full((2, 3), value), "half": torch.ones(2).bfloat16()}, "step": 7, "norms": [value]}


def same(one, other):
    """Equal to the bit, NaN and the sign of zero included."""
    if isinstance(one, torch.Tensor):
        bits = [tensor.contiguous().view(torch.uint8) for tensor in (one, other)]
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    return type(one) is type(other) and one == other


def stateless(store, key=KEY):
    """That a damaged state is named and counts as absent."""
    with pytest.warns(UserWarning, match=f"{key}.pt is damaged and not used: .*training the run again replaces it"):
        return store.state(key) is None


def test_state_round_trip(store):
    state = {
        "fleet": {"wq": torch.tensor([np.nan, -0.0, np.inf, 5e-324], dtype=torch.float64), "empty": torch.zeros(0, 3)},
        "adam": {"moments": torch.randn(2, 5, 3, generator=torch.manual_seed(0)).transpose(0, 2), "step": 2**40},
        "half": torch.tensor([0.1, -0.0]).bfloat16(),
        "diverged": {3: "the loss is not finite"},
        "rate": 0.1 + 0.2,
        "none": None,
    }
    store.put_state(KEY, state)
    assert same(store.state(KEY), state)
    assert same(Store(store.root).state(KEY), state)
    assert files(store.root) == [f"states/{KEY}.pt"]
    assert store.state(OTHER) is None and store.get(KEY) is None  # a state is no run
    put(store)
    store.put_state(KEY, state_of(2.0))
    assert same(store.state(KEY), state_of(2.0)) and store.get(KEY)
    assert files(store.root) == [f"{KEY}.parquet", f"states/{KEY}.pt"]


def test_any_damage_to_a_state_is_found(store):
    store.put_state(KEY, state_of(1.0))
    path = store.root / "states" / f"{KEY}.pt"
    whole = path.read_bytes()
    for position in range(len(whole)):
        torn = bytearray(whole)
        torn[position] ^= 1 << position % 8
        path.write_bytes(torn)
        assert stateless(store)
    for size in (0, 1, 63, 64, 65, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert stateless(store)
    for longer in (whole + b"\x00", whole * 2, b"\x00" * len(whole)):
        path.write_bytes(longer)
        assert stateless(store)
    store.put_state(KEY, state_of(2.0))
    assert same(store.state(KEY), state_of(2.0))


def test_state_under_another_name(store):
    store.put_state(KEY, state_of(1.0))
    (store.root / "states" / f"{KEY}.pt").rename(store.root / "states" / f"{OTHER}.pt")
    with pytest.warns(UserWarning, match=f"{OTHER}.pt is damaged and not used: it holds run {KEY}"):
        assert store.state(OTHER) is None


def test_state_that_torch_would_not_read_is_refused(store, monkeypatch):
    store.put_state(KEY, state_of(1.0))
    with pytest.raises(ValueError, match=f"torch would not read the state of run {KEY} back; expected tensors"):
        store.put_state(KEY, {"path": Path("x")})
    assert same(store.state(KEY), state_of(1.0)) and files(store.root) == [f"states/{KEY}.pt"]

    def refused(*args, **options):
        raise RuntimeError("of a later version")

    monkeypatch.setattr(torch, "load", refused)
    with pytest.raises(StoreError, match=f"torch cannot read .*{KEY}.pt; delete it and train the run again"):
        store.state(KEY)


def test_fresh_state(store, tmp_path):
    recorded = tmp_path / "runs"
    Store(recorded).put_state(KEY, state_of(1.0))
    assert Store(store.root, [recorded]).state(KEY) is None  # never from a recorded folder
    store.put_state(KEY, state_of(2.0))
    for fresh in (True, "token"):
        new = Store(store.root, [recorded], fresh=fresh)
        assert new.state(KEY) is None
        new.put_state(KEY, state_of(3.0))
        assert same(new.state(KEY), state_of(3.0))
    assert Store(store.root, fresh="token").state(KEY)
    assert Store(store.root, fresh="another").state(KEY) is None
    assert Store(store.root, fresh=True).state(KEY) is None
    assert same(Store(store.root).state(KEY), state_of(3.0))


def test_states_put_at_once(store):
    """Readers see one writer's state or another's, never a mixture, and no writer fails."""
    store.put_state(KEY, state_of(0.0))

    def write(value):
        for _ in range(10):
            Store(store.root).put_state(KEY, state_of(value))

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, float(value)) for value in range(4)]
        seen = [store.state(KEY)]
        while not all(writer.done() for writer in writers):
            seen.append(store.state(KEY))
        for writer in writers:
            writer.result()
    assert all(same(state, state_of(state["norms"][0])) for state in seen)
    assert files(store.root) == [f"states/{KEY}.pt"]


# Packs to resume


def test_packs_to_resume(store):
    for pack in ([KEY, OTHER], [OTHER, THIRD]):
        store.progress(pack).save({}, 1)
    assert len(store.packs()) == 2
    assert store.packs([KEY]) == [] == store.packs([])
    assert store.packs([KEY, OTHER]) == [sorted([KEY, OTHER])]
    assert len(store.packs([KEY, OTHER, THIRD])) == 1  # they share a run, which must not be trained twice
    put(store, OTHER)
    assert store.packs([KEY]) == [sorted([KEY, OTHER])]
    with store.claim([KEY, THIRD]):
        put(store, KEY)
        assert store.packs() == [sorted([OTHER, THIRD])]
        put(store, THIRD)
        store.progress([KEY, OTHER]).discard()
    assert files(store.root) == sorted(f"{key}.parquet" for key in (KEY, OTHER, THIRD))
    assert list((store.root / "partial").iterdir()) == []


# Two processes

TRAIN = """
    import os, pickle, sys, time, types
    from pathlib import Path
    import pandas as pd
    from swarmbook.records.store import Store

    # A stand-in: importing torch takes seconds, and the state here is one number.
    load = lambda path, **options: pickle.loads(Path(path).read_bytes())
    sys.modules["torch"] = types.SimpleNamespace(save=pickle.dump, load=load)

    root, log, delay, hang = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    keys = sys.argv[5].split(",")
    store, steps = Store(root), 10

    def note(text):
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {text}\\n")

    while missing := [key for key in keys if store.get(key) is None]:
        with store.claim(missing) as mine:
            for pack in store.packs(mine) or ([mine] if mine else []):
                progress = store.progress(pack)
                state, step = progress.load() or ({"weight": 0}, 0)
                note(f"start {step}")
                while step < steps:
                    step += 1
                    state["weight"] += step
                    progress.append([{"run": key, "step": step, "value": state["weight"]} for key in pack])
                    if step % 3 == 0:
                        progress.save(state, step)
                    if step == hang:
                        note("hangs")
                        time.sleep(600)
                    time.sleep(delay)
                table = progress.metrics()
                for key in pack:
                    store.put(key, {}, table[table.run == key].drop(columns="run").reset_index(drop=True), {})
                    note(f"put {key}")
                progress.discard()
        if not mine:
            note("wait")
            store.wait(missing)
    note("done")
"""


class Trainers:
    """Processes that run TRAIN over one store, and what they noted."""

    def __init__(self, folder):
        self.root, self.log, self.script = folder / "store", folder / "log", folder / "train.py"
        self.script.write_text(textwrap.dedent(TRAIN))
        self.processes = []

    def start(self, keys, delay=0.0, hang=0):
        command = [sys.executable, self.script, self.root, self.log, str(delay), str(hang), ",".join(keys)]
        lib = str(Path(__file__).parents[1] / "lib")
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": lib})
        self.processes.append(process)
        return process

    def notes(self, process=None):
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        lines = [line.split(" ", 1) for line in lines]
        return [text for pid, text in lines if process is None or int(pid) == process.pid]

    def until(self, note, process):
        end = time.monotonic() + 60
        while note not in self.notes(process):
            assert process.poll() is None and time.monotonic() < end, f"no {note!r} in {self.notes()}"
            time.sleep(0.01)

    def check(self, keys):
        """All is trained, nothing doubled, nothing missing, no rubbish."""
        store = Store(self.root)
        for key in keys:
            table = store.get(key).metrics
            assert list(table.step) == list(range(1, 11))
            assert list(table.value) == list(np.cumsum(range(1, 11)))
            assert self.notes().count(f"put {key}") == 1
        assert files(self.root) == sorted(f"{key}.parquet" for key in keys)
        assert list((self.root / "partial").iterdir()) == []


@pytest.fixture
def trainers(tmp_path):
    trainers = Trainers(tmp_path)
    yield trainers
    for process in trainers.processes:
        process.kill()
        process.wait()


def test_one_trains_the_others_wait(trainers):
    three = [trainers.start(keys, 0.05) for keys in ([KEY, OTHER], [OTHER, KEY], [KEY, OTHER, THIRD])]
    assert [process.wait(60) for process in three] == [0, 0, 0]
    trainers.check([KEY, OTHER, THIRD])
    assert "wait" in trainers.notes()


def test_waiter_takes_over_from_the_checkpoint(trainers):
    holder = trainers.start([KEY, OTHER], hang=8)  # its last checkpoint is of step 6
    trainers.until("hangs", holder)
    waiter = trainers.start([KEY, OTHER])
    trainers.until("wait", waiter)
    time.sleep(0.3)
    assert trainers.notes(waiter) == ["wait"]
    holder.kill()
    assert waiter.wait(60) == 0
    assert "start 6" in trainers.notes(waiter)
    trainers.check([KEY, OTHER])


# Every system call of the store that changes the disk, one by one: the process dies just before it.
DIE = """
    import os, signal, sys
    from pathlib import Path
    import pandas as pd, torch
    from swarmbook.records import store as module
    from swarmbook.records.store import Store

    root, key = Path(sys.argv[1]), sys.argv[2]
    calls = 0

    def deadly(call, last):
        def wrapped(*args, **options):
            global calls
            calls += 1
            if calls == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)
        return wrapped

    def train(root, last=None):
        for name in ("replace", "fsync", "truncate", "unlink"):
            setattr(os, name, deadly(getattr(os, name), last))
        torch.save = deadly(torch.save, last)
        store = Store(root)
        with store.claim([key]) as mine:
            if mine:
                progress = store.progress(mine)
                state, step = progress.load() or ({"weight": torch.zeros(3)}, 0)
                store.put_state(key, state)  # only so that the last one has something to replace
                while step < 3:
                    step += 1
                    state["weight"] += step
                    progress.append([{"step": step, "value": state["weight"][0]}])
                    progress.save(state, step)
                store.put_state(key, state)
                store.put(key, {}, progress.metrics(), {})
                progress.discard()

    last = 0
    while True:
        last += 1
        folder = root / str(last)
        reader = Store(folder)  # opened before there is anything, so that it cleans nothing up
        for again in (last, 1 + last // 2, None):  # killed, killed again in resuming, finished
            if os.fork() == 0:
                train(folder, again)
                os._exit(0)
            status = os.wait()[1]
            kept = reader.state(key)  # damage would be an error here
            assert kept is None or kept["weight"].tolist() in [[n] * 3 for n in (0, 1, 3, 6)], (last, kept)
            if again == last and status == 0:
                print(last)
                sys.exit()
        assert status == 0, (last, status)
        table = Store(folder).get(key).metrics
        assert list(table.step) == [1, 2, 3] and list(table.value) == [1, 3, 6], (last, table)
        assert reader.state(key)["weight"].tolist() == [6] * 3, last
        left = [str(path) for path in folder.rglob("*") if path.is_file() or path.parent.name == "partial"]
        assert sorted(left) == [str(folder / f"{key}.parquet"), str(folder / "states" / f"{key}.pt")], (last, left)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_any_moment(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "lib"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(DIE), tmp_path, KEY]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


def test_claims_in_one_process(store):
    with store.claim([KEY, OTHER, KEY]) as mine:
        assert mine == [KEY, OTHER]
        with Store(store.root).claim([KEY, THIRD]) as others:
            assert others == [THIRD]
    with store.claim([KEY]) as mine:
        assert mine == [KEY]
    put(store)
    with store.claim([KEY]) as mine:
        assert mine == []
    store.wait([KEY])
    store.wait([])
    assert files(store.root) == [f"{KEY}.parquet"]


def test_claim_is_dropped_on_error(store):
    with pytest.raises(KeyboardInterrupt), store.claim([KEY]):
        raise KeyboardInterrupt
    assert files(store.root) == []
    with store.claim([KEY]) as mine:
        assert mine == [KEY]


def test_leftovers_of_the_dead_are_removed(store):
    put(store)
    store.progress([KEY]).save({}, 1)  # killed after put, before discard
    store.progress([OTHER]).save({}, 1)
    store.put_state(KEY, {"step": 1})
    for half in (f"{OTHER}.parquet.0123abcd.tmp", f"states/{OTHER}.pt.tmp", f"states/{KEY}.pt.0123abcd.tmp"):
        (store.root / half).write_bytes(b"half")
    (store.root / "locks" / f"{OTHER}.run").touch()
    torn = store.root / "partial" / "0123456789abcdef0123"
    torn.mkdir()
    (torn / "pack.json.tmp").write_bytes(b'{"keys"')
    unfinished = store.progress([OTHER]).folder.name
    os.utime(store.root / f"{KEY}.parquet", (0, 2**33))  # the clock jumped: nothing looks at it
    assert Store(store.root).get(KEY)
    assert [path.name for path in (store.root / "partial").iterdir()] == [unfinished]
    left = [name for name in files(store.root) if not name.startswith("partial")]
    assert left == [f"{KEY}.parquet", f"states/{KEY}.pt"]
    assert list((store.root / "locks").iterdir()) == []


def test_opening_leaves_the_living_alone(store):
    with store.claim([KEY]) as mine, store._lock(f"{OTHER}.write"):
        progress = store.progress(mine)
        (store.root / "states").mkdir()
        for half in (f"{OTHER}.parquet.0123abcd.tmp", f"states/{OTHER}.pt.0123abcd.tmp"):
            (store.root / half).write_bytes(b"being written")
        put(store)
        before = files(store.root)
        Store(store.root)
        assert files(store.root) == before
        progress.discard()
    Store(store.root)
    assert files(store.root) == [f"{KEY}.parquet"]


def test_discard_while_another_store_opens(store):
    progress = store.progress([KEY])
    progress.append([{"step": 1}])
    (progress.folder / "pack.json").unlink()  # discard has got this far
    Store(store.root)
    assert not progress.folder.exists()
    progress.discard()


# Files that are there whole or not at all

WRITER = """
import sys
from pathlib import Path
from swarmbook.records.atomic_files import write
content = sys.argv[2].encode() * 300_000
for _ in range(50):
    write(Path(sys.argv[1]), content)
"""


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path):
    path = tmp_path / "page.html"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, letter]) for letter in "abc"]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 300_000 and len(set(content)) == 1
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert files(tmp_path) == ["page.html"]


def test_a_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write(tmp_path / "whole", b"")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "page.html"
    write(path, b"old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and files(tmp_path) == ["page.html"]


def test_only_what_killed_writers_of_a_file_left_is_removed(tmp_path):
    for name in ("a[1].pt.0123abcd.tmp", "a[1].pt", "a1.pt.0123abcd.tmp", "a[1].pt.old.gz"):
        (tmp_path / name).touch()
    clean(tmp_path / "a[1].pt")
    assert files(tmp_path) == ["a1.pt.0123abcd.tmp", "a[1].pt", "a[1].pt.old.gz"]


# Disks that are full or cannot be written


def no_space(*args, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk(store, monkeypatch, call):
    put(store, OTHER)
    progress = store.progress([KEY])
    progress.append([{"step": 1}])
    progress.save({"weight": 1}, 1)
    store.put_state(OTHER, {"weight": 1})
    before = {name: (store.root / name).read_bytes() for name in files(store.root)}
    with monkeypatch.context() as patch:
        patch.setattr(os, call, no_space)
        with pytest.raises(StoreError, match=f"cannot write .*{KEY}.parquet: No space left.*SWARMBOOK_STORE"):
            put(store)
        with pytest.raises(StoreError, match="No space left"):
            progress.save({"weight": 2}, 2)
        for key in (KEY, OTHER):
            with pytest.raises(StoreError, match=f"cannot write .*{key}.pt: No space left.*SWARMBOOK_STORE"):
                store.put_state(key, {"weight": 2})
        with pytest.raises(StoreError, match="No space left"):
            store.progress([THIRD])
        with pytest.raises(StoreError, match="No space left"):
            store.publish([OTHER], store.root.parent / "runs")
    assert files(store.root.parent / "runs") == []
    assert {name: (store.root / name).read_bytes() for name in files(store.root)} == before
    assert store.progress([KEY]).load() == ({"weight": 1}, 1)
    assert put(store) and store.get(OTHER) and store.state(OTHER) == {"weight": 1}


LIMIT = """
    import resource, sys
    from pathlib import Path
    import numpy as np, pandas as pd, torch
    from swarmbook.errors import StoreError
    from swarmbook.records.store import Store

    store, key = Store(Path(sys.argv[1])), sys.argv[2]
    progress = store.progress([key])
    progress.append([{"step": 1}])
    progress.save({"weight": torch.zeros(4)}, 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    table = pd.DataFrame({"value": np.random.default_rng(0).normal(size=10_000)})
    for write in (
        lambda: store.put(key, {}, table, {}),
        lambda: store.put_state(key, {"weight": torch.zeros(100_000)}),
        lambda: progress.save({"weight": torch.zeros(100_000)}, 2),
        lambda: progress.append([{"step": step} for step in range(5_000)]),
    ):
        try:
            write()
        except StoreError as error:
            assert "cannot write" in str(error) and "SWARMBOOK_STORE" in str(error), error
        else:
            raise AssertionError("was written")
"""


def test_file_that_may_not_grow(store):
    """A write that fails half way, by the kernel's own hand."""
    pytest.importorskip("resource")
    put(store, OTHER)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "lib")}
    subprocess.run([sys.executable, "-c", textwrap.dedent(LIMIT), store.root, KEY], env=env, check=True)
    progress = store.progress([KEY])
    state, step = progress.load()
    assert step == 1 and len(state["weight"]) == 4
    assert list(progress.metrics().step) == [1]
    assert len(files(progress.folder)) == 4
    assert store.get(OTHER) and store.get(KEY) is None and store.state(KEY) is None
    assert not list(store.root.rglob("*.tmp"))


def test_root_that_cannot_be_written(store, tmp_path, monkeypatch):
    """Simulated where tests run as root, whom permissions do not bind."""
    put(store)
    (store.root / "locks" / f"{KEY}.run").touch()
    folders = [path for path in (store.root / "locks", store.root)]
    for folder in folders:
        folder.chmod(0o555)
    if os.access(store.root, os.W_OK):

        def refused(*args, **options):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr("swarmbook.records.locks.FileLock", refused)
    try:
        readonly = Store(store.root)
        assert readonly.get(KEY)
        for write in (
            lambda: put(readonly, OTHER),
            lambda: readonly.put_state(OTHER, {}),
            lambda: readonly.claim([OTHER]).__enter__(),
            lambda: readonly.progress([OTHER]),
        ):
            with pytest.raises(StoreError, match=f"cannot write {store.root}.*set SWARMBOOK_STORE"):
                write()
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_root_under_a_file(tmp_path):
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "store")
    assert store.get(KEY) is None and store.state(KEY) is None
    for attempt in (lambda: put(store), lambda: store.put_state(KEY, {})):
        with pytest.raises(StoreError, match="cannot write .*Not a directory"):
            attempt()


def test_unreadable_run_is_not_silently_trained_again(store, monkeypatch):
    put(store)
    store.put_state(KEY, {})

    def refused(path, *options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refused)
    for read, name in ((store.get, f"{KEY}.parquet"), (store.state, f"{KEY}.pt")):
        with pytest.raises(StoreError, match=f"cannot read .*{name}: Permission denied"):
            read(KEY)


@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="needs root to mount a tmpfs")
def test_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        store = Store(disk / "store")
        put(store)
        table = pd.DataFrame({"value": np.random.default_rng(0).normal(size=20_000)})
        with pytest.raises(StoreError, match="No space left"):
            store.put(OTHER, CONFIG, table, PROVENANCE)
        with pytest.raises(StoreError, match="cannot write .*states"):
            store.put_state(OTHER, {"weight": torch.zeros(100_000)})
        assert files(store.root) == [f"{KEY}.parquet"]
        progress = store.progress([OTHER])
        with pytest.raises(StoreError, match="No space left"):
            progress.append({"step": step} for step in range(10_000))
        assert store.get(KEY)
        progress.discard()
        assert files(store.root) == [f"{KEY}.parquet"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_import_is_light():
    code = "import sys, swarmbook.records.store; sys.exit('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "lib")}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0


# Who holds what is waited for


def waiting(trainers, keys):
    """A trainer that waits, and what it says, line by line."""
    command = [sys.executable, trainers.script, trainers.root, trainers.log, "0", "0", ",".join(keys)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "lib")}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    trainers.processes.append(process)
    return process


def test_who_waits_says_for_whom_and_how_to_go_on_without(trainers):
    holder = trainers.start([KEY, OTHER], hang=2)
    trainers.until("hangs", holder)
    waiter = waiting(trainers, [KEY, OTHER])
    said = waiter.stderr.readline()
    assert (
        f"waiting for run {KEY} and 1 more, which is held by process {holder.pid} on {socket.gethostname()} (s" in said
    )
    assert f"(since {datetime.now():%Y-}" in said and "To go on without: end that process" in said
    assert "SWARMBOOK_STORE" in said
    holder.kill()
    assert waiter.wait(60) == 0
    trainers.check([KEY, OTHER])


def test_who_waits_says_so_every_minute(store, monkeypatch, capfd):
    monkeypatch.setattr(locks, "TELL", 0.5)
    with store.claim([KEY]), ThreadPoolExecutor() as pool:
        done = pool.submit(Store(store.root).wait, [KEY])
        time.sleep(1.6)
        put(store)
    done.result()
    assert capfd.readouterr().err.count(f"waiting for run {KEY}, which is held by process {os.getpid()}") in (2, 3)


def test_a_lock_that_another_thread_holds_for_long_is_told_as_well(tmp_path, capfd):
    path = tmp_path / "locks" / "tokens.lock"
    with ThreadPoolExecutor() as pool:
        with locks.lock(path) as mine:
            assert mine.own
            waits = pool.submit(lambda: locks.lock(path, blocking=True, what="tokens of x").__enter__())
            time.sleep(1.3)
        waits.result()
    said = capfd.readouterr().err
    assert f"waiting for tokens of x, which is held by process {os.getpid()} on " in said and f"delete {path}" in said


def test_a_lock_whose_file_was_deleted_is_no_longer_own_and_leaves_the_next_one_alone(tmp_path):
    path = tmp_path / "run.lock"
    with locks.lock(path) as first:
        path.unlink()
        assert not first.own
        with locks.lock(path) as second:
            assert second.own and not first.own
            with locks.lock(path) as third:
                assert third is None
            first_left = path.stat().st_ino
    assert first_left and not path.exists()
    with locks.lock(path) as first:
        path.unlink()
        with locks.lock(path) as second:
            pass
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_a_lock_says_nothing_wrong_of_who_holds_it(tmp_path):
    for content in (b"", b"{", b"[]", b'{"pid": 1}', b"\xff"):
        (tmp_path / "lock").write_bytes(content)
        assert locks.holder(tmp_path / "lock") == "another process"
    assert locks.holder(tmp_path / "nothing") == "another process"


# What is no file


@pytest.mark.parametrize("thing", ["pipe", "device"])
def test_what_is_no_regular_file_is_damage_and_hangs_nobody(store, thing):
    put(store)
    store.put_state(KEY, {"step": 1})
    progress = store.progress([OTHER])
    progress.append([{"step": 1}])
    progress.save({"step": 1}, 1)
    folder = progress.folder
    for path in (store.root / f"{KEY}.parquet", store.root / "states" / f"{KEY}.pt", *folder.iterdir()):
        content = path.read_bytes()
        path.unlink()
        if thing == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
        if path.suffix == ".parquet":
            assert absent(store)
        elif path.parent.name == "states":
            assert stateless(store)
        elif path.name == "pack.json":
            assert store.packs() == []
        else:
            with pytest.warns(UserWarning, match=f"{path.name} is no regular file"):
                assert WorkInProgress(folder).load() is None
            again = WorkInProgress(folder)
            again.append([{"step": 1}])
            again.save({"step": 1}, 1)
            continue
        path.unlink()
        path.write_bytes(content)
    assert store.get(KEY) and store.state(KEY)


def test_a_stream_that_becomes_a_pipe_is_lost_progress(store):
    progress = store.progress([KEY])
    progress.append([])
    (progress.folder / "metrics.jsonl").unlink()
    os.mkfifo(progress.folder / "metrics.jsonl")
    for use in (progress.metrics, lambda: progress.append([{"step": 1}]), lambda: progress.save({}, 1)):
        with pytest.raises(LostProgress, match="metrics.jsonl"):
            use()


@pytest.mark.parametrize("said", ["1", "true", "TRUE", "yes", "on"])
def test_fresh_is_fresh_every_time_however_it_is_said(tmp_path, said):
    code = f"from swarmbook.records.store import open_store; s = open_store(); print(s.get({KEY!r}) is None); "
    code += f"import pandas as pd; s.put({KEY!r}, {{}}, pd.DataFrame({{'value': [1.0]}}), {{}})"
    env = {**os.environ, "SWARMBOOK_STORE": str(tmp_path), "SWARMBOOK_FRESH": said}
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout == "True\n"


def test_fresh_may_be_refused_and_must_not_be_guessed(store, monkeypatch):
    monkeypatch.setenv("SWARMBOOK_STORE", str(store.root))
    put(store)
    for said in ("false", "No", "off", " 0 ", ""):
        monkeypatch.setenv("SWARMBOOK_FRESH", said)
        assert open_store().get(KEY)
    for said in ("2", "y", "ja"):
        monkeypatch.setenv("SWARMBOOK_FRESH", said)
        with pytest.raises(StoreError, match=f"SWARMBOOK_FRESH='{said}' is neither yes nor no: give 1, true, "):
            open_store()
