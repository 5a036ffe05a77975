"""A run on many processes is the stacked run to rounding; no rank waits for ever; what cannot be shared is refused."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import own_methods
import pytest
import torch
from forks import Fork
from hypothesis import given, settings
from hypothesis import strategies as st
from test_resharding import assert_alike

from swarmbook import runs
from swarmbook.config import run_config
from swarmbook.distributed import __main__
from swarmbook.distributed.emulated_links import EmulatedLinks
from swarmbook.distributed.mesh import Mesh, mesh_of, meshes
from swarmbook.distributed.schedule_1f1b import perform, tasks_of
from swarmbook.distributed.stage_shard import StageShard
from swarmbook.distributed.supervisor import supervise
from swarmbook.errors import ConfigError
from swarmbook.methods.model_size import Shape
from swarmbook.methods.routing import in_order
from swarmbook.records.keys import key_of
from swarmbook.records.store import Store
from swarmbook.runs import run
from swarmbook.simulation.network import Network
from swarmbook.training.fleet import Fleet
from swarmbook.training.trainer import Pack

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "data": "stories_toy", "width": 16, "heads": 2, "hidden": 32, "sequence": 8, "microbatches": 4, "batch": 1,
    "steps": 30, "lr": 3e-3, "log_every": 1, "evaluate_every": 10, "held_out": 8,
}  # fmt: skip
SQUARE, ROW, COLUMN = ({"replicas": r, "stages": s} for r, s in ((2, 2), (1, 4), (4, 1)))
GROUPED = {**TINY, **SQUARE, "route": "random replicas", "sync": "NoLoCo", "sync_every": 5}
CASES = {  # on four processes
    "in order": {**SQUARE, "evaluate_on": ("stories_toy",)},
    "shuffled": {"seed": 1, **GROUPED},
    "in fragments": {**SQUARE, "sync": "DiLoCo", "fragments": 2, "delay": 1, "mixing": 0.3},
    "all-reduce": {**COLUMN, "sync": "all-reduce"},
    "DiLoCo": {**COLUMN, "sync": "DiLoCo"},
    "NoLoCo": {**COLUMN, "sync": "NoLoCo"},
    "swapped": {**ROW, "route": "swapped ends"},
    "skipping": {**ROW, "route": "planned", "paths": ((0, 3), (0, 2, 1), (3, 2, 1, 0), (1, 2))},
    "absent from its pair": {**SQUARE, "sync": "NoLoCo", "absent": 0.4},
    "absent from what is on its way": {
        **SQUARE,
        "sync": "DiLoCo",
        "absent": 0.4,
        "fragments": 2,
        "delay": 3,
        "mixing": 0.3,
        "lr": 1e-3,
    },
    "absent, then with a peer's weights": {**SQUARE, "sync": "NoLoCo", "absent": 0.4, "rejoin": "fast"},
    "absent, then with a neighbour's": {
        "replicas": 8,
        "stages": 1,
        "sync": "DiLoCo",
        "absent": 0.4,
        "rejoin": "fast",
        "delay": 2,
        "mixing": 0.3,
        "lr": 1e-3,
    },
    "absent, then with its own": {**COLUMN, "sync": "SparseLoCo", "density": 0.2, "absent": 0.3, "rejoin": "own"},
    "in 16 bits": {**SQUARE, "sync": "NoLoCo", "storage": "bf16, fp32 moments", "lr": 1e-3},
    "absent from all": {**COLUMN, "sync": "SparseLoCo", "density": 0.2, "absent": 0.3},
    "own outer Adam": {
        **SQUARE,
        "sync": "outer Adam",
        "outer_lr": 0.01,
        "method": {"sync.beta1": 0.5, "sync.eps": 0.1},
    },
    "own outer Lion": {**SQUARE, "sync": "outer Lion", "outer_lr": 1e-3},
    "own error feedback": {**COLUMN, "sync": "error feedback", "method": {"share": 0.3}},
    "own SGD": {**SQUARE, "optimizer": "SGD", "lr": 0.1, "weight_decay": 0.01, "method": {"nesterov": True}},
    "AdamW": {**SQUARE, "weight_decay": 0.1},
    "in few bits": {**COLUMN, "sync": "DiLoCo, 4 bits", "absent": 0.2, "lr": 1e-3},
    "norms and directions apart": {
        **SQUARE,
        "sync": "Decoupled DiLoCo",
        "fragments": 2,
        "delay": 1,
        "absent": 0.3,
        "rejoin": "own",
    },
    "gossip with momentum": {**SQUARE, "sync": "GASLoC", "method": {"gossip": 0.8}},
    "two mixing steps": {"replicas": 8, "stages": 1, "sync": "Factored Gossip DiLoCo", "absent": 0.2, "lr": 1e-3},
    "frequencies": {
        **SQUARE,
        "sync": "DeMo",
        "method": {"kept": 4},
        "absent": 0.2,
        "lr": 1e-3,
    },  # the sign is not continuous
    "dropping layers": {**ROW, "route": "LayerDrop", "method": {"drop": 0.4}, "microbatches": 2},
    "clipped by workers": {**SQUARE, "stages": 4, "clipping": "workers", "clip": 0.3},
    "probed": {**ROW, "measurements": ("loss jump", "similarity")},
    "probed replicas": {**COLUMN, "sync": "gossip", "measurements": ("replicas", "mean weights")},
}
HALVES = {"replicas": 2, "stages": 4}  # two stages of a replica on each rank
BLOCKS = {**HALVES, "failure_rate": 0.03}
LOSING = {
    "CheckFree": {**ROW, "failure_rate": 0.03, "failing": "interior", "moments": "average"},
    "CheckFree, power 1": {**BLOCKS, "sync": "NoLoCo", "route": "random replicas"},
    "CheckFree, as released": {**BLOCKS, "sync": "all-reduce", "boost_half_life": 5.0},
    "CheckFree+": {**ROW, "route": "swapped ends", "failing": "all", "failure_rate": 0.05, "seed": 1},
    "CheckFree+, as released": {**BLOCKS, "route": "swapped ends", "failing": "all"},
    "uniform average": {**BLOCKS, "moments": "keep", "lost_stages": ((4, 0), (4, 2), (9, 4))},
    "copy previous": {**BLOCKS, "sync": "DiLoCo", "moments": "average"},
    "random": {**ROW, "failure_rate": 0.03},
    "identity": {**ROW, "lost_stages": ((3, 2), (3, 3), (17, 1))},
    "all zeros": {**ROW, "lost_stages": ((12, 3),)},
    "rollback": {**BLOCKS, "sync": "DiLoCo", "keep_every": 4, "lost_stages": ((6, 1), (23, 4))},
    "neighbour snapshot": {**BLOCKS, "keep_every": 4, "lost_stages": ((6, 1), (23, 4), (25, 2), (25, 3), (25, 1))},
    "redundant computation": {**BLOCKS, "lost_stages": ((6, 1), (23, 4), (25, 2), (25, 1))},
    "peer copy": {**BLOCKS, "failing": "all", "failure_rate": 0.06, "sync": "NoLoCo", "lost_stages": ((9, 2),)},
    "mean of peers": {"replicas": 4, "stages": 2, "failure_rate": 0.04, "sync": "NoLoCo", "slow_weights": "likewise"},
    "peer's slow weights": {
        **BLOCKS,
        "failing": "all",
        "sync": "DiLoCo",
        "fragments": 2,
        "delay": 1,
        "slow_weights": "peer",
    },
    "share of each": {**BLOCKS, "optimizer": "Muon", "moments": "average", "method": {"previous": 0.3}},
    "learning rate alone": {**ROW, "failure_rate": 0.03, "boost_half_life": 5.0},
}
# Adam makes much of rounding where moments are new: the higher the rate, the sooner the numbers part.
CASES |= {name: {"recovery": name, "lr": 1e-3, **fields} for name, fields in LOSING.items()}
GOSSIP = {**BLOCKS, "sync": "NoLoCo", "route": "random replicas", "failing": "all", "lr": 1e-3}
CASES |= {
    f"slow weights {wish}": {**GOSSIP, "recovery": rule, "slow_weights": wish}
    for rule, wish in {"CheckFree": "likewise", "copy previous": "peer", "random": "reset"}.items()
}
NEWCOMERS = {"recovery": "peer copy", "slow_weights": "peer", "sync": "NoLoCo", "lr": 1e-3}
CASES |= {
    "away for good": {**SQUARE, "sync": "DiLoCo", "away": (("2", 7, None),), "evaluate_on": ("stories_toy",)},
    "a stage away": {**COLUMN, "stages": 2, "sync": "all-reduce", "away": (("3.2", 4, None),), "detour": "peer"},
    "newcomers": {
        **HALVES,
        **NEWCOMERS,
        "away": (("2", 3, 12), ("1.2", 14, 21), ("2.3", 13, None)),
        "detour": "peer",
        "route": "random replicas",
        "fragments": 2,
        "delay": 2,
    },
    "downtime": {**HALVES, **NEWCOMERS, "recovery": "CheckFree", "failure_rate": 0.03, "downtime": 3},
    "whole replicas": {**HALVES, **NEWCOMERS, "failing": "replicas", "failure_rate": 0.05, "sync": "DiLoCo"},
}
for case in CASES.values():
    if case.get("sync", "none") != "none" and "sync_every" not in case:
        case |= {"sync_every": 5, "common_start": True}
CONFIGS = {name: run_config(**{**TINY, **fields}) for name, fields in CASES.items()}
LATE = {**HALVES, "lr": 3e-3, "sync": "NoLoCo", "sync_every": 5, "delay": 3, "common_start": True}
PAIR, ONE = (run_config(**{**TINY, **fields, "steps": 12}) for fields in (LATE, ROW))
CHILDREN = {
    "goes on": {**LATE, "start": PAIR},
    "goes on, losing": {**BLOCKS, "recovery": "CheckFree", "common_start": True, "start": PAIR},
    "branches": {**HALVES, "sync": "DiLoCo", "sync_every": 5, "branch": ONE},
}
CONFIGS |= {name: run_config(**{**TINY, "lr": 1e-3, **fields}) for name, fields in CHILDREN.items()}
ENDLESS = run_config(**{**GROUPED, "steps": 10**6, "evaluate_every": 10**6})


def written(folder, *configs):
    """The configurations as files."""
    paths = [folder / f"{i}.json" for i in range(len(configs))]
    for path, config in zip(paths, configs, strict=True):
        path.write_text(config.model_dump_json(exclude_defaults=True))
    return [str(path) for path in paths]


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return str(place.getsockname()[1])


def environment(store, **more):
    return {**os.environ, "SWARMBOOK_STORE": str(store), "OMP_NUM_THREADS": "1", **more}


def launch(processes, arguments, program=("-m", "swarmbook.distributed")):
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    return [*command, "--master-addr=127.0.0.1", f"--master-port={free_port()}", *program, *arguments]


def torchrun(processes, arguments, store, **program):
    command = launch(processes, arguments, **program)
    return subprocess.run(command, env=environment(store), capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """All cases on four processes, one after another: what was printed, and the store."""
    folder = tmp_path_factory.mktemp("four")
    command = forked(written(folder, *CONFIGS.values()), before="import own_methods\n")
    with started(folder, command) as ranks:
        said, _ = ranks.communicate()
    assert ranks.returncode == 0, said
    return said, Store(folder / "store")


def values(table):
    """Measurements by what they are of; the ledger lists its entries in no particular order."""
    return table.set_index(["step", "metric", "stage", "label"])["value"].sort_index()


def only_disturbed(folder, config):
    """The only result in a store, which says that processes were lost; its failures as those of a trace."""
    store = Store(folder)
    assert store.get(config.key) is None
    keys = {path.stem for path in folder.glob("*.parquet")} - {parent.key for parent in config.parents}
    (record,) = map(store.get, keys)
    events, rows = record.provenance["lost processes"], record.metrics
    assert record.config == {**config.model_dump(mode="json"), "lost_processes": events}
    assert record.provenance["undisturbed"] == config.key
    assert record.key == key_of({"run": config.key, "lost processes": events})
    marked = rows["label"] == "lost process"
    assert {event["step"] for event in events} == set(rows["step"][marked])
    labels = rows["label"].astype(str).where(~marked, "").astype("category")
    return replace(record, metrics=rows.assign(label=labels))


def assert_equals_stacked(config, record, folder):
    stacked = run([config], show=False, device="cpu", store=Store(folder)).records[0].metrics
    ours = record.metrics
    assert ours.dtypes.to_dict() == stacked.dtypes.to_dict()
    ledgers = [table[table["metric"] == "ledger"] for table in (ours, stacked)]
    assert values(ledgers[0]).to_dict() == values(ledgers[1]).to_dict()
    ours, stacked = (values(table[table["metric"] != "ledger"]) for table in (ours, stacked))
    assert ours.index.equals(stacked.index) and (stacked.index.get_level_values("step") == config.steps).any()
    np.testing.assert_allclose(ours, stacked, rtol=0, atol=1e-5)
    losses = stacked.xs("training loss", level="metric")
    assert losses.iloc[-1] < losses.iloc[0] - 0.05  # it has learnt something that could differ


@pytest.mark.parametrize("case", CONFIGS)
def test_four_processes_give_the_numbers_of_one_fleet(four, tmp_path, case):
    record = four[1].get(CONFIGS[case].key)
    config = CONFIGS[case]
    assert (config.recovery != "none" or bool(config.away)) == (record.metrics["metric"] == "failure").any()
    assert_equals_stacked(CONFIGS[case], record, tmp_path)
    assert record.provenance["processes"] == 4 and record.provenance["backend"] == "gloo"
    assert record.config == CONFIGS[case].model_dump(mode="json")


@pytest.mark.parametrize("parent", [PAIR, ONE])
def test_what_other_runs_begin_with_is_kept_as_stacked_training_keeps_it(four, tmp_path, parent):
    """That of the pair while an exchange is on its way."""
    run([parent], show=False, device="cpu", store=Store(tmp_path), keep=True)
    ours, stacked = (store.keeping().state(parent.key) for store in (four[1], Store(tmp_path)))
    assert_alike(ours, stacked, atol=1e-5)
    assert parent is ONE or (ours["outer"]["arriving"][0]["at"] == 13)


def test_the_plan_is_printed(four):
    plan = ["replica 1, stage 1, embedding", "replica 1, stage 2, norm and head"]
    plan += ["replica 2, stage 1, embedding", "replica 2, stage 2, norm and head"]
    assert "\n".join(f"rank {rank}: {cells}" for rank, cells in enumerate(plan)) in four[0]


def test_groups_of_cells_share_a_process(tmp_path):
    """Two processes with a stage of both replicas each, far apart; a run that diverges leaves nothing in the store."""
    config, wild = CONFIGS["shuffled"], run_config(**{**TINY, **SQUARE, "lr": 1e30})
    arguments = ["--mesh", "1x2", "--places", "seven", "--pace", "0.02", "--weight", "1e4"]
    script = own_methods.__file__  # which registers a user's own methods, and then is `swarmbook.distributed`
    done = torchrun(2, [*arguments, *written(tmp_path, config, wild)], tmp_path / "store", program=[script])
    store = Store(tmp_path / "store")
    assert done.returncode == 1 and "the loss is not finite from step 1 on" in done.stderr
    assert store.get(wild.key) is None
    links = EmulatedLinks(Network.over("seven", 2), pace=0.02, weight=1e4)
    size = 4 * config.batch * config.sequence * config.width
    assert links.seconds(0, 1, size) == 0.02 * links.network.seconds(0, 1, 1e4 * size) > 0.005
    assert store.get(config.key).provenance["seconds"] > 2 * config.steps * links.seconds(0, 1, size)  # there and back
    assert store.get(config.key).provenance["grid"] == "1x2"
    assert_equals_stacked(config, store.get(config.key), tmp_path / "stacked")


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """One process, as torchrun would start it, with a store of its own."""
    named = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in {**named, "SWARMBOOK_STORE": str(tmp_path / "store")}.items():
        monkeypatch.setenv(name, value)


def test_one_process_is_enough_and_no_run_is_trained_twice(alone, tmp_path, capsys, monkeypatch):
    config = CONFIGS["shuffled"]
    files = written(tmp_path, config)
    assert __main__.main(files) == 0 and "written to" in capsys.readouterr().out
    assert_equals_stacked(config, Store(tmp_path / "store").get(config.key), tmp_path / "stacked")
    monkeypatch.setenv("MASTER_PORT", free_port())
    assert __main__.main([config.key]) == 0
    assert f"run {config.key} is finished already" in capsys.readouterr().out


def test_a_run_that_another_process_trains_is_left_to_it(alone, tmp_path, capsys):
    config = CONFIGS["shuffled"]
    with Store(tmp_path / "store").claim([config.key]):
        assert __main__.main(written(tmp_path, config)) == 1
    assert f"run {config.key} is being trained by process {os.getpid()} on " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ranks", "arguments", "said"),
    [
        ("4", ["--places", "mars"], "unknown list of places 'mars'"),
        ("4", ["--places", "seven", "--pace", "0"], "pace=0.0 must be positive"),
        ("3", [], "3 processes cannot hold replicas=2 x stages=2 in equal rectangles: start one of 1 (1x1), 2 (2x1), "),
        ("4", ["--grid", "4x1"], "4 processes as 4x1 cannot hold replicas=2 x stages=2"),
        ("8", [], "2 (1x2), 4 (2x2) (replicas x stages)"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(alone, monkeypatch, tmp_path, capsys, ranks, arguments, said):
    monkeypatch.setenv("WORLD_SIZE", ranks)
    monkeypatch.setattr(__main__, "Communicator", None)  # would be called
    assert __main__.main([*arguments, *written(tmp_path, CONFIGS["in order"])]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--replace", "-1"], "'-1' is no number of times"),
        (["--timeout", "nan"], "'nan' is no number of seconds"),
        (["--timeout", "0.5"], "'0.5' is no number of seconds from 2 on"),
        (["--mesh", "2"], "'2' is no mesh"),
    ],
)
def test_options_that_make_no_sense_are_refused(alone, tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        __main__.main([*arguments, *written(tmp_path, CONFIGS["in order"])])
    assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "holds no configuration"),
        ('{"data": "stories_toy", "steps": 0}', "steps=0"),
        (None, "is neither a JSON file nor the key of a run"),
    ],
)
def test_what_is_no_run_is_refused(alone, tmp_path, capsys, text, said):
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)
    assert __main__.main([str(path) if text else "0123456789abcdef0123"]) == 2
    assert said in capsys.readouterr().err


# Of what is measured while a process dies nothing is said here.
RARE = {"evaluate_every": 30, "lr": 1e-3}


LAUNCHER = """\
import os, signal, sys
from swarmbook.distributed.__main__ import main
from torch.distributed import TCPStore
ranks = range(int(os.environ.get("RANKS", "4")))
os.environ |= {"WORLD_SIZE": str(len(ranks)), "TORCHELASTIC_USE_AGENT_STORE": "True"}
store = os.fork()
if store == 0:
    kept = TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=True, wait_for_workers=False)
    signal.pause()
for rank in ranks:
    if os.fork() == 0:
        os.environ["RANK"] = str(rank)
        os._exit(main(sys.argv[1:]))
status = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in ranks]
os.kill(store, signal.SIGKILL)
sys.exit(max(status))
"""


def forked(arguments, before=""):
    """As torchrun starts four processes, or RANKS, but forks of one that loads the library and executes `before`."""
    return [sys.executable, "-c", before + LAUNCHER, *arguments]


def started(folder, command, **named):
    """A command on ranks that keep their store in a folder."""
    named |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    if command[1] == "-c":
        return Fork(command, environment(folder / "store", **named))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment(folder / "store", **named), **streams)


def struck(folder, command, strikes):
    """Train on four processes; each of `strikes` (after step, signal, rank) hits the rank's process. What was said."""
    strikes, ids, said = list(strikes), {}, []
    with started(folder, command) as ranks:
        for line in ranks.stdout:
            said.append(line)
            for found in re.finditer(r"rank (\d) is process (\d+)", line):  # a line of another process may hold it
                ids[int(found[1])] = int(found[2])
            if strikes and f"step {strikes[0][0]}: loss" in line:
                _, strike, rank = strikes.pop(0)
                time.sleep(random.uniform(0, 0.05))  # anywhere in the steps that follow
                os.kill(ids[rank], strike)
    assert ranks.returncode == 0, "".join(said)
    return "".join(said)


@pytest.mark.parametrize(
    ("start", "fields", "strikes", "lost"),
    [
        # A process in the middle is killed, then it hangs that took its place.
        (partial(launch, 4), ROW | {"moments": "average"}, ((signal.SIGKILL, 1), (signal.SIGSTOP, 1)), [2]),
        # Rank 0, with the first two stages and the embedding of one of two replicas.
        (
            forked,
            BLOCKS | {"failure_rate": 0.0, "sync": "all-reduce", "common_start": True},
            ((signal.SIGKILL, 0),),
            [0, 1, 2],
        ),
        # The same, and the other replica has all that was lost.
        (
            forked,
            BLOCKS | {"recovery": "peer copy", "failure_rate": 0.0, "sync": "all-reduce", "common_start": True},
            ((signal.SIGKILL, 0),),
            [0, 1, 2],
        ),
        # Under gossip, with slow weights and outer momentum.
        (
            forked,
            GOSSIP | {"sync_every": 2, "common_start": True, "failure_rate": 0.0, "slow_weights": "likewise"},
            ((signal.SIGKILL, 0),),
            [0, 1, 2],
        ),
    ],
)
def test_a_killed_process_is_replaced_and_its_stages_rebuilt_while_training_goes_on(
    tmp_path, monkeypatch, start, fields, strikes, lost
):
    """The step in which it died is done again: the numbers are those of stacked training that loses the same cells."""
    config = run_config(**{"recovery": "CheckFree", **TINY, **fields, **RARE})
    begin = random.randrange(1, 8)
    command = start(["--replace", "2", "--timeout", "10", *written(tmp_path, config)])
    said = struck(tmp_path, command, [(begin + 9 * i, *strike) for i, strike in enumerate(strikes)])
    record = only_disturbed(tmp_path / "store", config)
    failures = record.metrics[record.metrics["metric"] == "failure"]
    steps = sorted(set(failures["step"]))
    assert len(steps) == len(strikes) and steps[0] >= begin, said
    assert sorted(failures["stage"]) == sorted(lost * len(strikes))
    dying = np.zeros((config.steps, config.replicas, config.stages + 1), dtype=bool)
    dying[np.ix_(steps, [0], [stage - 1 for stage in lost])] = True
    monkeypatch.setattr("swarmbook.config.RunConfig.failures", lambda run: dying)
    assert_equals_stacked(config, record, tmp_path / "stacked")


FAULTS = """\
import json, os, signal, sys
import swarmbook.training.trainer
from swarmbook.distributed.outer import RankOuter
from swarmbook.distributed.pipeline_executor import PipelineExecutor
from swarmbook.distributed.communicator import Communicator, LostRank
from swarmbook.records.checkpoint import WorkInProgress
from swarmbook.distributed.remote_stages import RemoteStages
from swarmbook.distributed.rank_trainer import RankTrainer
swarmbook.training.trainer.CHECKPOINT_SECONDS = float(sys.argv.pop(1))

def first(fault):
    try:
        return os.open(f"{folder}/{fault}", os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return False

def before(cls, name, step, where, fault):
    cls = globals()[cls]
    method = getattr(cls, name)
    def faulty(self, *args):
        if now and now.comm.rank == where and now.step == step and first(f"{name} {step}"):
            globals()[fault]()
        return method(self, *args)
    setattr(cls, name, faulty)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def cut():
    raise LostRank("said by the test")

now, advance = None, RankTrainer.advance
def noted(self):
    global now
    now = self
    advance(self)
RankTrainer.advance = noted
folder, places = sys.argv.pop(1), json.loads(sys.argv.pop(1))
for place in places:
    before(*place)
"""


@pytest.mark.parametrize(
    ("seconds", "fields", "places", "lost"),  # the first: between checkpoints
    [
        (
            60,
            {"recovery": "CheckFree", "lost_stages": ((20, 2),)},
            [
                ("PipelineExecutor", "run", 4, 2, "die"),  # before it has its gradients
                ("RankTrainer", "_charge", 11, 1, "cut"),  # it has them, but does not see that all have
                ("RankTrainer", "_update", 11, 3, "die"),
                ("RemoteStages", "dismiss", 20, 1, "die"),  # it has rebuilt what the trace killed, but not said so
            ],
            ((4, 3), (12, 4), (12, 0)),  # the last process has norm and head as well
        ),
        (  # of the ends, what was lost comes back from the rank beside it
            60,
            {"recovery": "CheckFree+", "route": "swapped ends"},
            [("PipelineExecutor", "run", 6, 3, "die"), ("PipelineExecutor", "run", 15, 0, "die")],
            ((6, 4), (6, 0), (15, 1), (15, 0)),
        ),
        (  # in the midst of an exchange, and when one has had it that another has not
            60,
            {**GOSSIP, "recovery": "peer copy", "slow_weights": "peer", "failing": "stages", "failure_rate": 0.0}
            | {"sync_every": 5, "common_start": True},
            [
                ("RankOuter", "_of_group", 10, 1, "die"),
                ("RankTrainer", "_charge", 20, 0, "cut"),
                ("RankTrainer", "measure", 20, 3, "die"),
            ],
            ((9, 0, 2), (9, 0, 3), (9, 0, 4), (20, 1, 2), (20, 1, 3), (20, 1, 4)),
        ),
        (  # while a checkpoint is gathered of a run that goes on from another; afterwards none is kept
            0,
            {"recovery": "CheckFree+", "route": "swapped ends", "start": run_config(**{**TINY, **ROW, "steps": 4})},
            [("RankTrainer", "state", 7, 2, "die")],
            ((7, 3),),
        ),
        (  # while a checkpoint is written
            0,
            {"recovery": "CheckFree+", "route": "swapped ends"},
            [("WorkInProgress", "save", 16, 0, "die")],
            ((16, 1), (16, 0)),
        ),
    ],
)
def test_whenever_a_process_dies_no_step_is_left_out_or_done_twice(
    tmp_path, monkeypatch, seconds, fields, places, lost
):
    (tmp_path / "was").mkdir()
    config = run_config(**{**TINY, **ROW, **fields, **RARE})
    if config.start:
        run([config.start], show=False, device="cpu", store=Store(tmp_path / "store"), keep=True)
    arguments = [str(seconds), str(tmp_path / "was"), json.dumps(places), "--replace", "1", *written(tmp_path, config)]
    struck(tmp_path, forked(arguments, before=FAULTS), strikes=())
    assert len(list((tmp_path / "was").iterdir())) == len(places)
    dying = config.failures().copy()
    for step, *cell in lost:
        replica, stage = cell if len(cell) > 1 else (0, cell[0] - 1)
        dying[step, replica, stage] = True
    monkeypatch.setattr("swarmbook.config.RunConfig.failures", lambda run: dying[: run.steps])  # also of the start
    # Beside the stages at the ends: these die with them, where a process has both.
    monkeypatch.setattr("swarmbook.methods.recovery.Strategy.holders_of", lambda *_: {1, 2})
    record = only_disturbed(tmp_path / "store", config)
    assert_equals_stacked(config, record, tmp_path / "stacked")
    if seconds == 0 and not config.start:  # the undisturbed run goes on from before the loss
        monkeypatch.undo()
        store = Store(tmp_path / "store")
        assert store.progress([config.key]).load()[1] == 15
        assert_equals_stacked(config, run([config], show=False, store=store).records[0], tmp_path / "undisturbed")


@pytest.mark.parametrize("place", [("Communicator", "__exit__", 30, 1), ("Communicator", "conclude", 30, 0)])
def test_a_rank_that_dies_after_the_result_is_kept_is_not_missed(tmp_path, place):
    """Its replacement finds that the run is finished, and that is the undisturbed run."""
    (tmp_path / "was").mkdir()
    config = run_config(**{**TINY, **ROW, "recovery": "CheckFree", **RARE})
    arguments = ["60", str(tmp_path / "was"), json.dumps([[*place, "die"]]), "--replace", "1"]
    said = struck(tmp_path, forked([*arguments, *written(tmp_path, config)], before=FAULTS), strikes=())
    assert "was ended by signal 9; 1 more may follow it" in said and list((tmp_path / "was").iterdir())
    record = Store(tmp_path / "store").get(config.key)
    assert "lost processes" not in record.provenance and not list((tmp_path / "store").glob("partial/*"))
    assert_equals_stacked(config, record, tmp_path / "stacked")


CUT = """\
import os, sys
import swarmbook.training.trainer
from swarmbook.distributed.rank_trainer import RankTrainer
swarmbook.training.trainer.CHECKPOINT_SECONDS = 0
first, last = int(sys.argv.pop(1)), int(sys.argv.pop(1))
advance = RankTrainer.advance
def cut(trainer):
    if trainer.phase < 3 * first or trainer.step == last:
        os._exit(9)
    advance(trainer)
RankTrainer.advance = cut
"""


def trained(folder, config, ranks, first, last):
    """Train on some processes, which must begin at a step and are killed at another; their exit status."""
    command = forked([str(first), str(last), *written(folder, config)], before=CUT)
    with started(folder, command, RANKS=str(ranks)) as processes:
        processes.communicate()
    return processes.returncode


class Killed(Exception):
    pass


def stacked_training(monkeypatch, config, store, first, last):
    """The same in one process, stacked."""
    advance = Pack.advance

    def cut(pack):
        assert pack.step >= first
        if pack.step == last:
            raise Killed
        advance(pack)

    with monkeypatch.context() as patched:
        patched.setattr(Pack, "advance", cut)
        patched.setattr("swarmbook.training.trainer.CHECKPOINT_SECONDS", 0)
        run([config], show=False, device="cpu", store=Store(store))


def test_any_number_of_processes_goes_on_from_what_another_has_left(tmp_path, monkeypatch):
    """Here after a rollback; four processes, then two, then stacked training."""
    config = CONFIGS["rollback"]
    assert trained(tmp_path, config, ranks=4, first=0, last=11) == 9
    assert trained(tmp_path, config, ranks=2, first=11, last=25) == 9
    stacked_training(monkeypatch, config, tmp_path / "store", first=25, last=None)
    record = Store(tmp_path / "store").get(config.key)
    assert_equals_stacked(config, record, tmp_path / "stacked")
    assert [json.loads(place)["processes"] for place in record.provenance["earlier"]] == [4, 2]


def test_many_processes_go_on_from_what_stacked_training_has_left(tmp_path, monkeypatch):
    """Of a run that goes on from another one, while an exchange is on its way."""
    config = CONFIGS["goes on"]
    with pytest.raises(Killed):
        stacked_training(monkeypatch, config, tmp_path / "store", first=0, last=21)
    assert trained(tmp_path, config, ranks=4, first=21, last=99) == 0
    record = Store(tmp_path / "store").get(config.key)
    assert_equals_stacked(config, record, tmp_path / "stacked")
    (place,) = map(json.loads, record.provenance["earlier"])
    assert "processes" not in place and place.items() <= record.provenance.items()


def test_a_run_whose_beginning_does_not_fit_says_how_to_make_it(alone, tmp_path, capsys):
    """Four processes could train it, but not the single model that it branches from."""
    parent = run_config(**{**TINY, "stages": 1, "steps": 2, "evaluate_every": 2})
    child = run_config(
        **{**TINY, **COLUMN, "sync": "NoLoCo", "sync_every": 2, "steps": 4, "evaluate_every": 4, "branch": parent}
    )
    with started(tmp_path, forked(written(tmp_path, child, parent)[:1])) as ranks:
        told, _ = ranks.communicate()
    assert ranks.returncode == 1
    said = (
        f"run {child.key} begins with the final state of run {parent.key}, which is not in the store, and 4 processes"
    )
    assert said in told and "start one of 1 (1x1) (replicas x stages), with --keep" in told
    assert __main__.main(["--keep", str(tmp_path / "1.json")]) == 0
    store = Store(tmp_path / "store")
    assert store.keeping().get(parent.key) and not store.get(child.key)
    assert "written to" in capsys.readouterr().out


FORKS = """\
import os, sys
from swarmbook.distributed import __main__ as distributed
lost, folder, *arguments = sys.argv[1:]
ranks = []
for rank in range(4):
    ranks.append(os.fork())
    if ranks[-1] == 0:
        os.environ["RANK"] = str(rank)
        for stream in (1, 2):
            os.dup2(os.open(f"{folder}/said {rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        os._exit(distributed.main(arguments))
print(*ranks, flush=True)
for rank in {0, 1, 2, 3} - {int(lost)}:
    print(rank, os.waitstatus_to_exitcode(os.waitpid(ranks[rank], 0)[1]), flush=True)
"""


@pytest.fixture
def begun(tmp_path):
    """Starts four ranks in training, without a launcher that would end them when one is lost: it, and their ids."""
    launchers, ids = [], []

    def start(lost, timeout):
        command = [sys.executable, "-c", FORKS, str(lost), str(tmp_path), "--timeout", timeout]
        command += written(tmp_path, ENDLESS)
        launchers.append(started(tmp_path, command, WORLD_SIZE="4"))
        ids.extend(map(int, launchers[0].stdout.readline().split()))
        said, limit = tmp_path / "said 0", time.monotonic() + 200
        while not (said.exists() and "\nstep 3:" in said.read_text()):
            assert time.monotonic() < limit and launchers[0].poll() is None, said.read_text()
            time.sleep(0.1)
        return launchers[0], ids

    yield start
    for process in ids:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    for launcher in launchers:
        launcher.communicate()


@pytest.mark.parametrize(("strike", "lost"), [(signal.SIGKILL, 2), (signal.SIGSTOP, 1), (signal.SIGSTOP, 0)])
def test_a_rank_that_vanishes_or_hangs_is_named_by_all_others_in_time(begun, tmp_path, strike, lost):
    """Rank 0 is the hardest to lose: it keeps the store through which the others agree."""
    launcher, ids = begun(lost, timeout="10")
    os.kill(ids[lost], strike)
    ended, _ = launcher.communicate(timeout=100)  # 10 s, and what a busy machine adds
    others = sorted({0, 1, 2, 3} - {lost})
    assert sorted(ended.splitlines()) == [f"{rank} 1" for rank in others]
    for rank in others:
        said = (tmp_path / f"said {rank}").read_text()
        assert re.search(f"rank {rank}: rank {lost}(, which keeps the store that all ranks share,)? is lost", said)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "--replace with recovery='none': it needs one that takes nothing from the lost process; take one of rand"),
        ({"recovery": "rollback"}, "--replace with recovery='rollback': it needs one that takes nothing"),
        ({"recovery": "CheckFree", "moments": "keep"}, "--replace with moments='keep'"),
        (
            {"recovery": "CheckFree", "sync": "NoLoCo", "sync_every": 5, "replicas": 2},
            "--replace with sync='NoLoCo' and slow_weights='keep': they are lost with a process; take 'peer', ",
        ),
        (
            {
                "recovery": "peer copy",
                "slow_weights": "peer",
                "replicas": 2,
                "sync": "NoLoCo",
                "sync_every": 5,
                "delay": 1,
            },
            "--replace with delay=1: what is on its way is lost with a process; take 0",
        ),
    ],
)
def test_what_could_not_be_replaced_is_refused(alone, tmp_path, capsys, fields, said):
    config = run_config(**{**TINY, **fields})
    assert __main__.main(["--replace", "1", *written(tmp_path, config)]) == 2
    assert said in capsys.readouterr().err
    assert __main__.main(["--replace", "1", *written(tmp_path, config, config)]) == 2
    assert "--replace with 2 runs: give one" in capsys.readouterr().err


def test_a_process_is_replaced_as_often_as_allowed_and_only_if_it_did_not_end_by_itself(tmp_path, capfd):
    def ends(*ways):
        (tmp_path / "lives").write_text("")

        def work():
            with (tmp_path / "lives").open("a+") as lives:
                lives.write("x")
                lives.seek(0)
                way = ways[len(lives.read()) - 1]
            if way > 0:
                return way
            os.kill(os.getpid(), -way)

        return work

    assert supervise(ends(-signal.SIGKILL, 3), 1, timeout=60) == 3
    assert "was ended by signal 9; 1 more may follow it" in capfd.readouterr().err
    assert supervise(ends(-signal.SIGSTOP, -signal.SIGTERM, 3), 1, timeout=2) == 1
    assert len((tmp_path / "lives").read_text()) == 2


def test_ranks_that_do_not_come_are_named(alone, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr("swarmbook.distributed.communicator.JOIN", 1.0)
    assert __main__.main([*written(tmp_path, CONFIGS["in order"])]) == 1
    assert "rank 1, 2, 3 of 4 did not come within 1 s" in capsys.readouterr().err


@given(st.integers(1, 6), st.integers(1, 6))
def test_grids_are_equal_rectangles(replicas, stages):
    for mesh in meshes(replicas, stages):
        cells = {rank: mesh.cells(rank) for rank in range(mesh.ranks)}
        assert len({(len(rows), len(columns)) for rows, columns in cells.values()}) == 1
        held = Counter((r, s) for rows, columns in cells.values() for r in rows for s in columns)
        assert set(held.values()) == {1} and len(held) == replicas * stages
        for r, s in held:
            rows, columns = cells[mesh.rank(r, s)]
            assert r in rows and s in columns
            mates = {mesh.rank(other, s) for other in range(replicas)}
            assert sorted(mates) == mesh.column(mesh.rank(r, s))
    assert {mesh.ranks for mesh in meshes(replicas, stages)} >= {1, replicas, stages, replicas * stages}


def test_as_few_stages_as_may_be_lie_apart():
    config = CONFIGS["in order"]
    assert mesh_of(config, 2) == Mesh(2, 2, rows=2, columns=1)
    assert mesh_of(config, 2, wanted=(1, 2)) == Mesh(2, 2, rows=1, columns=2)
    with pytest.raises(ConfigError, match="3 processes"):
        mesh_of(config, 3)


class Post:
    """Messages between threads: each reads the k-th message of another as the k-th that it asked for."""

    def __init__(self, mesh):
        self.boxes = {(a, b): [] for a in range(mesh.ranks) for b in range(mesh.ranks)}
        self.news = threading.Condition()

    def comm(self, rank):
        asked = Counter()

        def send(message, to):
            with self.news:
                self.boxes[rank, to].append(message)
                self.news.notify_all()

        def receive(_, source):
            k, box = asked[source], self.boxes[source, rank]
            asked[source] += 1

            def read():
                with self.news:
                    assert self.news.wait_for(lambda: len(box) > k, timeout=20), f"rank {rank} waits for {source}"
                    return box[k]

            return SimpleNamespace(read=read)

        return SimpleNamespace(rank=rank, send=send, receive=receive, flush=lambda: None)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_whatever_the_route_no_rank_waits_in_a_circle_and_messages_are_not_mixed_up(data):
    R, S, M, P = (data.draw(st.integers(1, most)) for most in (3, 4, 4, 5))
    mesh = data.draw(st.sampled_from(meshes(R, S)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    cells = np.stack([rng.integers(R, size=(P, R, M)), rng.integers(-1, S, size=(P, R, M))], -1)
    if data.draw(st.booleans()):
        cells[-1, ..., 1] = S
    tasks = tasks_of(cells, mesh, back=data.draw(st.booleans()))
    post, done, wrong = Post(mesh), [], []

    def do(task, given):
        if given != ((task.path, task.place - 1) if task.place else None):
            wrong.append((task, given))
        done.append(task)
        return task.path, task.place

    threads = [threading.Thread(target=perform, args=(tasks, do, None, post.comm(r))) for r in range(mesh.ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and sorted(done, key=tasks.index) == tasks
    visits = int(((cells[..., 1] >= 0) & (cells[..., 1] < S)).sum())
    assert Counter(task.kind for task in tasks)["forward"] == visits


def test_a_stage_holds_activations_of_no_more_microbatches_than_stages_follow():
    S, M = 4, 9
    tasks = tasks_of(in_order(1, S, M, np.random.default_rng(0)), Mesh(1, S, 1, S))
    for s in range(S):
        steps = [{"forward": 1, "backward": -1}.get(task.kind, 0) for task in tasks if task.rank == s]
        assert max(np.cumsum(steps)) == min(M, S - s) and sum(steps) == 0


@pytest.mark.parametrize("mesh", [mesh for mesh in meshes(2, 4) if mesh.ranks > 1])
def test_a_rank_has_the_fleets_weights_of_its_own_cells_and_no_others(mesh):
    config = run_config(**{**TINY, "replicas": 2, "stages": 4})
    shape = Shape(stages=4, layers_per_stage=1, width=16, heads=2, hidden=32, vocabulary=50)
    seeds = [int(config.seeds("weights", r).generate_state(1)[0]) for r in range(2)]
    whole, held = Fleet(shape, seeds, "cpu", compile=False), 0
    for rank in range(mesh.ranks):
        comm = SimpleNamespace(rank=rank, device=torch.device("cpu"))
        shard = StageShard(config, shape, mesh, comm, compile=False)
        rows, columns = mesh.cells(rank)
        for r in rows:
            for name, weight in shard.ends(r - rows.start).items():
                assert torch.equal(weight, whole.ends(r)[name])
            for s in columns:
                for name, weight in shard.stage(r - rows.start, s - columns.start).items():
                    assert torch.equal(weight, whole.stage(r, s)[name])
        held += sum(weight.numel() for weight in (*shard.layers.values(), *shard.outer.values()))
    assert held == 2 * shape.parameters


def test_a_file_is_read_as_it_was_written(tmp_path):
    (path,) = written(tmp_path, CONFIGS["skipping"])
    assert runs.config_of(path) == CONFIGS["skipping"]
