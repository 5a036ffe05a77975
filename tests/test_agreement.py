"""Ranks that were not started alike refuse before the first step; they listen on loopback; messages cannot run code."""

import json
import pickle
import socket
import sys
import time

import psutil
import pytest
import torch
from forks import Fork
from test_distributed import environment, free_port, written

from swarmbook.config import RunConfig, run_config
from swarmbook.distributed import __main__
from swarmbook.distributed.agreement import difference
from swarmbook.distributed.communicator import loopback
from swarmbook.distributed.messages import decode, encode
from swarmbook.errors import TrainingError

TINY = {
    "data": "stories_toy", "width": 16, "heads": 2, "hidden": 32, "sequence": 8, "microbatches": 2, "batch": 1,
    "steps": 4, "log_every": 2, "evaluate_every": 4, "held_out": 4, "replicas": 2, "stages": 2,
}  # fmt: skip
PLAIN, OTHER = run_config(**TINY), run_config(**TINY, seed=1)

# Each case is two ranks with arguments of their own, forks of one process that has loaded the library.
TWO = """\
import json, os, sys
from swarmbook.distributed import __main__ as distributed
for folder, port, *each in json.loads(sys.argv[1]):
    ranks = []
    for rank, given in enumerate(each):
        ranks.append(os.fork())
        if ranks[-1] == 0:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": port} | given["environment"]
            for stream in (1, 2):
                os.dup2(os.open(f"{folder}/said {rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            if given["version"]:
                import swarmbook
                swarmbook.__version__ = given["version"]
            os._exit(distributed.main(given["arguments"]))
    print(*(os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks), flush=True)
"""


def started(folder, cases):
    """Start ranks by hand, two for each case (name, runs and options of the first, those of the second)."""
    given = []
    for name, *pair in cases:
        place = folder / name
        ranks = []
        for rank, (runs, *arguments, more) in enumerate(pair):
            files = place / f"files {rank}"
            files.mkdir(parents=True)
            arguments = ["--timeout", "8", *arguments, *written(files, *runs)]
            ranks.append({"arguments": arguments, "environment": {}, "version": "", **more})
        given.append([str(place), free_port(), *ranks])
    named = environment(folder / "store", MASTER_ADDR="127.0.0.1")
    command = [sys.executable, "-c", TWO, json.dumps(given)]
    return Fork(command, named)


LOSING = run_config(**TINY, recovery="random")
OLDER = {"version": "0.0.1", "environment": {"WORLD_SIZE": "4"}}
CASES = {
    "lr": ([PLAIN], [run_config(**TINY, lr=2e-3)], "lr of run 1 is 0.001 on rank 0, 0.002 on rank 1"),
    "seed": ([PLAIN], [OTHER], "seed of run 1 is 0 on rank 0, 1 on rank 1"),
    "data": (
        [PLAIN],
        [run_config(**{**TINY, "data": "essay_cfi"})],
        'data of run 1 is "stories_toy" on rank 0, "essay_',
    ),
    "order": (
        [PLAIN, OTHER],
        [OTHER, PLAIN],
        "seed of run 1 is 0 on rank 0, 1 on rank 1; seed of run 2 is 1 on rank 0",
    ),
    "number": ([PLAIN, OTHER], [PLAIN], "number of runs is 2 on rank 0, 1 on rank 1"),
    "sync": (
        [PLAIN],
        [run_config(**TINY, sync="DiLoCo", sync_every=2, common_start=True)],
        'sync of run 1 is "none" on rank 0, "DiLoCo" on rank 1',
    ),
    "width": ([PLAIN], [run_config(**{**TINY, "width": 32})], "width of run 1 is 16 on rank 0, 32 on rank 1"),
    "steps": ([PLAIN], [run_config(**{**TINY, "steps": 8})], "steps of run 1 is 4 on rank 0, 8 on rank 1"),
    "grid": ([PLAIN], [PLAIN, "--grid", "1x2"], '--mesh of run 1 is "2x1" on rank 0, "1x2" on rank 1'),
    "keep": ([PLAIN], [PLAIN, "--keep"], "--keep is false on rank 0, true on rank 1"),
    "places": ([PLAIN], [PLAIN, "--places", "seven"], '--places is null on rank 0, "seven" on rank 1'),
    "timeout": ([PLAIN], [PLAIN, "--timeout", "9"], "--timeout is 8.0 on rank 0, 9.0 on rank 1"),
    "replace": ([LOSING], [LOSING, "--replace", "1"], "--replace is 0 on rank 0, 1 on rank 1"),
    "version": ([PLAIN], [PLAIN, OLDER], 'on rank 0, "0.0.1" on rank 1; processes is 2 on rank 0, 4 on rank 1'),
}


def case(name, first, second):
    """A case for `started`: of each rank its runs, its options, and what else it differs in."""
    ranks = []
    for given in (first, second):
        runs = [part for part in given if isinstance(part, RunConfig)]
        more = [part for part in given if isinstance(part, dict)]
        ranks.append((runs, *(part for part in given if isinstance(part, str)), more[0] if more else {}))
    return name, *ranks


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """Of each case the statuses of both ranks, what they have said, and the folder."""
    folder = tmp_path_factory.mktemp("refused")
    process = started(folder, [case(name, first, second) for name, (first, second, _) in CASES.items()])
    statuses, _ = process.communicate(timeout=300)
    said = {name: [(folder / name / f"said {rank}").read_text() for rank in (0, 1)] for name in CASES}
    return dict(zip(CASES, map(str.split, statuses.splitlines()), strict=True)), said, folder


@pytest.mark.parametrize("name", CASES)
def test_ranks_that_were_not_started_alike_refuse_and_name_who_has_what(refused, name):
    statuses, said, folder = refused
    assert statuses[name] == ["2", "2"], said[name]
    for rank, text in enumerate(said[name]):
        assert f"rank {rank}: the ranks were started with different things: " in text and CASES[name][2] in text, text
    assert not list((folder / "store").glob("*.parquet"))


def test_ranks_that_were_started_alike_train_and_listen_on_loopback_alone(tmp_path):
    long = run_config(**{**TINY, "steps": 100_000, "log_every": 1, "evaluate_every": 100_000})
    process, told, seen = started(tmp_path, [case("two", [long], [long])]), tmp_path / "two" / "said 0", set()
    try:
        limit = time.monotonic() + 60
        while not told.exists() or "step 2: loss" not in told.read_text():
            assert time.monotonic() < limit and process.poll() is None
            time.sleep(0.1)
        for rank in psutil.Process(process.pid).children():
            seen |= {c.laddr.ip for c in rank.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    finally:
        for rank in psutil.Process(process.pid).children():
            rank.kill()
        process.communicate()
    assert seen and all(map(loopback, seen)), seen


def test_all_differences_are_named_once():
    one = {"swarmbook": '"1"', "lr of run 1": "0.1", "text or own code of run 1, by its key": '"a"'}
    other = {**one, "lr of run 1": "0.2", "text or own code of run 1, by its key": '"b"'}
    assert difference({0: one, 1: one, 2: dict(one)}) is None
    assert "lr of run 1 is 0.1 on rank 0, 2, 0.2 on rank 1. Start" in difference({0: one, 1: other, 2: one})
    assert 'by its key is "a" on rank 0, "b" on rank 1' in difference({0: one, 1: {**other, "lr of run 1": "0.1"}})


def test_a_port_in_use_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "run.json").write_text(PLAIN.model_dump_json(exclude_defaults=True))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        assert __main__.main([str(tmp_path / "run.json")]) == 1
    said = capsys.readouterr().err
    assert "rank 0 cannot listen at 127.0.0.1:" in said and "a port that is free there in MASTER_PORT" in said


def test_a_rank_that_meets_a_program_which_is_no_store_says_so(tmp_path):
    """The other rank, which finds its port taken, has ended."""
    with socket.create_server(("127.0.0.1", 0)) as taken:  # it accepts and says nothing
        port = str(taken.getsockname()[1])
        ranks = [([PLAIN], "--timeout", "3", {"environment": {"MASTER_PORT": port}}) for _ in range(2)]
        statuses, _ = started(tmp_path, [("taken", *ranks)]).communicate(timeout=100)
    assert statuses.split() == ["1", "1"]
    said = [(tmp_path / "taken" / f"said {rank}").read_text() for rank in (0, 1)]
    assert f"rank 0 cannot listen at 127.0.0.1:{port}" in said[0]
    assert f"rank 1: what listens at 127.0.0.1:{port} is no store: give all ranks" in said[1]


# Messages

STATE = {"fleet": {"w": torch.randn(2, 3), "half": torch.ones(2).bfloat16()}, "flags": torch.tensor([True]), "n": 3}
STATE |= {"arriving": {0: {"at": 7, "theta": {}, "absent": [1]}, 2: {"at": 8}}, "none": None, "one": torch.tensor(2)}


def test_a_message_comes_back_as_it_was():
    view = torch.arange(6)[::2]
    back = decode(encode([STATE, ("text", float("nan"), 1e-300), view, torch.empty(0, 4)]))
    for name in ("w", "half"):
        assert torch.equal(back[0]["fleet"][name], STATE["fleet"][name])
        assert back[0]["fleet"][name].dtype == STATE["fleet"][name].dtype
    assert back[0]["arriving"] == STATE["arriving"] and back[0]["one"] == 2 and back[0]["flags"].dtype == torch.bool
    assert back[1][0] == "text" and back[1][1] != back[1][1] and back[1][2] == 1e-300
    assert torch.equal(back[2], view) and back[3].shape == (0, 4)


class Called:
    count = 0

    def __reduce__(self):
        return setattr, (Called, "count", 1)


WRONG = {
    "nothing": b"",
    "zeros": b"\x00" * 40,
    "JSON": b"{}",
    "cut": encode([1])[:-3],
    "pickle": pickle.dumps(Called()),
}


@pytest.mark.parametrize("message", WRONG.values(), ids=WRONG)
def test_what_is_no_message_is_refused_and_never_run(message):
    with pytest.raises(TrainingError, match=f"a message of {len(message)} bytes is none that this version sends"):
        decode(message)
    assert Called.count == 0
    with pytest.raises(TypeError, match="a message holds a Called"):
        encode([Called()])


@pytest.mark.parametrize(("host", "alone"), [("127.0.0.1", True), ("127.0.1.1", True), ("localhost", True)])
def test_loopback_is_told_from_other_addresses(host, alone):
    assert loopback(host) == alone
    assert not loopback("192.0.2.1") and not loopback("no host of this name.invalid")
