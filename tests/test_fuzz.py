"""Whatever is asked for, the answer is a result or a sentence: never an exception of another library.

Configurations are made up field by field. What is accepted is trained, interrupted and resumed, and every bit agrees.
Two that differ in one field give other numbers, unless they have one key, or `limits` says why not.
Command lines, notebooks, grids and configurations in files are made up likewise. A hundred or so of each are tried, and
twenty times as many where SWARMBOOK_SWEEPS is "all", as in the weekly job.
"""

import contextlib
import copy
import io
import json
import math
import os
import re
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from swarmbook import cli
from swarmbook.config import RunConfig, run_config
from swarmbook.errors import ConfigError, DataError, TrainingError
from swarmbook.methods.consistency import EXCHANGE_FIELDS, ROUTE_FIELDS
from swarmbook.methods.gossip_groups import MATCHINGS
from swarmbook.methods.measurements import MEASUREMENTS
from swarmbook.methods.parameters import fields_of
from swarmbook.methods.recovery import RULES
from swarmbook.methods.routing import ROUTES
from swarmbook.methods.sync import SYNCS
from swarmbook.records.store import Store
from swarmbook.reproduction import execution, sweep
from swarmbook.runs import run
from swarmbook.training import trainer

MORE = 20 if os.environ.get("SWARMBOOK_SWEEPS") == "all" else 1
ANY = settings(max_examples=100 * MORE, suppress_health_check=list(HealthCheck))

# --- configurations ---

SMALL = {
    "tokenizer": ["bytes"], "data": ["stories_toy", "stories_toy+essay_cfi"], "data_limit": [None, 2000],
    "shards": ["mixed", "domains"], "stages": [1, 2, 3, 4], "layers_per_stage": [1, 2], "width": [4, 8, 20],
    "heads": [1, 2], "hidden": [4, 7], "sequence": [2, 7], "replicas": [1, 2, 3, 4], "microbatches": [1, 2, 3],
    "batch": [1, 2], "steps": [1, 2, 5, 6], "lr": [1e-3, 1.0, 1e12], "schedule": ["constant", "cosine"],
    "warmup": [0, 1, 5], "schedule_steps": [None, 1, 4], "lr_floor": [0.0, 0.1, 1.0], "clip": [1e-9, 1.0, 1e300],
    "storage": ["fp32", "bf16"], "route": list(ROUTES), "paths": [(), ((0,),), ((0, 1), (1, 0)), ((0, 2, 1),)],
    "visits": [None, 1.0, 1.5, 2.0, 3.0], "swaps": [0, 1, 3], "swap_lag": [1, 2], "reach": [None, 1, 2],
    "keep_first": [True, False], "common_start": [False, True], "sync": list(SYNCS), "sync_every": [1, 2, 3],
    "outer_lr": [0.7, 1.0], "outer_momentum": [0.0, 0.5], "consensus": [None, 0.0, 0.7], "group": [1, 2, 3],
    "matching": list(MATCHINGS), "absent": [0.0, 0.5, 1.0], "density": [0.1, 1.0],
    "rejoin": ["slow", "fast", "own"], "fragments": [1, 2, 3], "delay": [0, 1, 2], "mixing": [0.0, 0.5, 1.0],
    "recovery": list(RULES), "failure_rate": [0.0, 0.3, 1.0], "failing": ["interior", "stages", "all", "replicas"],
    "away": [(), (("1.1", 1, None),), (("2", 0, 3), ("1.2", 1, 2))], "detour": ["skip", "peer"],
    "downtime": [0, 2, None],
    "lost_stages": [(), ((0, 0),), ((1, 1), (1, 2)), ((4, 2),)],
    "moments": ["reset", "keep", "average"], "slow_weights": ["keep", "reset", "likewise", "peer"],
    "lr_boost": [1.1, 0.5], "boost_half_life": [None, 1.0],
    "keep_every": [1, 2], "log_every": [1, 2, 3], "evaluate_every": [1, 2], "held_out": [1, 4],
    "evaluate_on": [(), ("stories_toy",)], "measurements": [(), *((name,) for name in MEASUREMENTS)],
    "seed": [0, 1, 2**31], "init_std": [0.02, 0.5], "clipping": ["cells", "workers"],
}  # fmt: skip
ALWAYS = ("tokenizer", "data", "stages", "width", "heads", "hidden", "sequence", "steps", "held_out", "log_every")
ALWAYS += ("evaluate_every", "common_start", "replicas")
ODD = [-1, 0, 0.5, 10**12, 1e300, math.inf, math.nan, "", "none", "x", True, None, [], [[0]], {}, [[-1, 10**12]]]


def sized(chosen: dict) -> st.SearchStrategy:
    return st.fixed_dictionaries({name: st.sampled_from(values) for name, values in chosen.items()})


@st.composite
def fields(draw) -> dict:
    """The fields of a small configuration: those that give its size, and up to ten more."""
    free = SMALL.keys() - {*ALWAYS, *ROUTE_FIELDS}
    more = draw(st.lists(st.sampled_from(sorted(free)), max_size=10, unique=True))
    found = draw(sized({name: SMALL[name] for name in (*ALWAYS, *more)}))
    found["evaluate_every"] *= found["log_every"]
    if "route" in found:  # most of its fields are for some routes alone
        found |= draw(sized({name: SMALL[name] for name in fields_of(ROUTES[found["route"]], RunConfig.model_fields)}))
    return found


def trained(config: RunConfig, folder: Path, steps: float = math.inf) -> pd.DataFrame | str:
    """The metrics of a run, or why it ended: after `steps` steps as if by Ctrl-C."""
    advance, done = trainer.Pack.advance, 0

    def stepping(pack: trainer.Pack) -> None:
        nonlocal done
        if done == steps:
            raise KeyboardInterrupt
        done += 1
        advance(pack)

    with mock.patch.object(trainer.Pack, "advance", stepping), mock.patch.object(trainer, "CHECKPOINT_SECONDS", -1.0):
        try:
            run([config], store=Store(folder), device="cpu", show=False)
        except (KeyboardInterrupt, ConfigError, DataError, TrainingError) as ended:
            return f"{type(ended).__name__}: {ended}"
    return Store(folder).get(config.key).metrics


@given(fields(), st.integers(0, 5))
@ANY
def test_what_is_accepted_is_trained_and_goes_on_bit_by_bit(given, steps):
    try:
        config = run_config(**given)
    except (ConfigError, DataError):
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = trained(config, Path(folder) / "whole")
        trained(config, Path(folder) / "parts", steps)
        resumed = trained(config, Path(folder) / "parts")
    if isinstance(whole, str) or isinstance(resumed, str):
        assert whole == resumed if isinstance(whole, str) else False, (whole, resumed)
        assert not whole.startswith("KeyboardInterrupt")
    else:
        pd.testing.assert_frame_equal(whole, resumed, check_exact=True)


@given(
    fields(), st.dictionaries(st.sampled_from([*RunConfig.model_fields, "nonsense"]), st.sampled_from(ODD), max_size=3)
)
@ANY
def test_a_configuration_is_accepted_or_refused_in_a_sentence(given, odd):
    with contextlib.suppress(ConfigError, DataError):
        assert run_config(**{**given, **odd}).key


AFTER = ("moments", "lr_boost", "boost_half_life", "slow_weights")  # what becomes of a rebuilt stage


def limits(name: str, a: RunConfig, b: RunConfig) -> list[str]:
    """Why two runs that differ in one field may have equal numbers, and different keys all the same.

    All are values, or draws, at which two methods are one; a series over the field may reach them. Fields that no rule
    of a run reads are none of these, but for those that recorded runs hold.
    """
    strategy, values = RULES[a.recovery], {getattr(a, name), getattr(b, name)}
    exchanged = name == "sync" or name in EXCHANGE_FIELDS
    there = [run.present_at(step) for run in (a, b) for step in range(9)]
    reasons = {
        "recorded runs hold it where no copies are kept": name == "keep_every"
        and (strategy is None or strategy.keeps is None or strategy.always),
        "recorded runs hold it with one replica": name == "common_start" and a.replicas == 1,
        "it rebuilds stages of lost processes, too": name in ("recovery", "keep_every", *AFTER)
        and not (a.absences().back if a.absences() else a.failures()).any(),
        "who is away leaves nobody to meet": (exchanged or name == "route") and any(run.absences() for run in (a, b)),
        "the draws are the same": name in ("failure_rate", "failing", "lost_stages")
        and np.array_equal(a.failures(), b.failures()),
        "where two neighbours are missing many rules are one": name == "recovery"
        and (a.stages < 3 or not a.failures()[..., 1 : a.stages - 1].any()),
        "where all stages die together they are drawn": name == "recovery"
        and np.array_equal(a.failures()[..., :-1].any(-1), a.failures()[..., :-1].all(-1)),
        "a stage that came back exactly is not treated": name in AFTER and strategy is not None and strategy.always,
        "ends and lone stages have no neighbours": name == "moments"
        and (a.stages == 1 or not a.failures()[..., :-1].any()),
        "a stage of zeros learns nothing at any rate": name in AFTER[1:3] and a.recovery == "all zeros",
        "the same are away": name in ("downtime", "away")
        and all(map(np.array_equal, a.absences() or [a.failures()], b.absences() or [b.failures()])),
        "nobody is passed, or no peer is there": name == "detour",
        "slow weights act in an exchange, and of replicas alike they are the same": name == "slow_weights",
        "there is one peer to ask, or all are alike": name == "recovery"
        and all(RULES[run.recovery] and RULES[run.recovery].peers for run in (a, b)),
        "a boost fades after the last failure": name == "boost_half_life" and a.failures()[-1].any(),
        "a warm-up of one step is none": name == "warmup" and values == {0, 1},
        "the cosine ends where it begins": name in ("schedule", "schedule_steps", "lr_floor")
        and 1.0 in {run.lr_floor for run in (a, b) if run.schedule == "cosine"},
        "no gradient was longer": name in ("clip", "clipping"),
        "no other route": name == "route"
        and (a.stages == 1 or a.replicas == 1 or _all_in_order(a) or _all_in_order(b)),
        "all stages are visited": name == "visits" and values == {None, a.stages},
        "no path reaches that far": name in ("swaps", "swap_lag", "reach"),
        "one group, or one replica in each": name == "matching" and a.group in (1, a.replicas),
        "slow weights of a group are the same": name == "consensus"
        and (a.group in (1, a.replicas) or values == {None, a.outer_lr}),
        "nobody meets anybody": exchanged and _alone(a) and _alone(b),
        "nothing is taken from others": exchanged and {a.mixing, b.mixing} == {1.0},
        "momentum acts from a second exchange on": name == "outer_momentum" and a.absent > 0,
        "nobody was absent alone": name in ("absent", "rejoin")
        and all(one is None or one.all() or not one.any() for one in there),
    }
    return [reason for reason, applies in reasons.items() if applies]


def _all_in_order(run: RunConfig) -> bool:
    return run.route == "random paths" and not run.swaps and run.visits in (None, run.stages)


def _alone(run: RunConfig) -> bool:
    """Whether an exchange, if there is one, changes no weights, for want of others and of slow weights."""
    method = SYNCS[run.sync]
    return method is None or (not method.keeps and 1 in (run.replicas, run.group if method.groups else 0))


LONG = {"steps": 9, "log_every": 1, "evaluate_every": 3, "lr": 0.01}  # so that what is set has time to act
TOGETHER = [  # fields that say something of one another, and values that let them
    ({}, sorted(SMALL.keys() - {*LONG, *ROUTE_FIELDS, "tokenizer", "measurements"})),
    ({"sync": list(SYNCS), "replicas": [1, 2, 4], "common_start": [True]}, sorted(EXCHANGE_FIELDS)),
    (
        {"recovery": list(RULES), "stages": [1, 3, 4]},
        ["failing", "failure_rate", "keep_every", "lost_stages", "recovery", *AFTER],
    ),
    ({"schedule": ["constant", "cosine"]}, ["lr_floor", "schedule", "schedule_steps", "warmup"]),
    ({"route": ["random paths"], "stages": [3, 4]}, sorted(ROUTE_FIELDS)),
]


@given(st.sampled_from(TOGETHER), st.data())
@ANY
def test_two_configurations_that_differ_give_other_numbers(together, data):
    kind, names = together
    given = data.draw(sized({name: SMALL[name] for name in ALWAYS})) | data.draw(sized(kind)) | LONG
    more = data.draw(st.lists(st.sampled_from(names), max_size=4, unique=True))
    given |= data.draw(sized({name: SMALL[name] for name in more}))
    changes = data.draw(st.permutations([(name, value) for name in names for value in SMALL[name]]))
    with contextlib.suppress(ConfigError, DataError):
        first = run_config(**given)
        for name, value in changes:
            with contextlib.suppress(ConfigError, DataError):
                second = run_config(**{**given, name: value})
                if second.key != first.key:
                    break
        else:
            return
        with tempfile.TemporaryDirectory() as folder:
            numbers = [trained(config, Path(folder)) for config in (first, second)]
        event("two were trained")
        if not any(isinstance(each, str) for each in numbers) and numbers[0].equals(numbers[1]):
            event(f"{name}: {limits(name, first, second)}")
            assert limits(name, first, second), f"{name}={value!r} changes nothing in {given}"


# --- the command line ---


def told(arguments: list) -> str:
    """What a command tells as it ends; it ends in one of the statuses of README, and shows no traceback."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = exit.code
    begun = re.match(r"(report|verify|export): .*\n", err.getvalue())  # what is said at once
    error = err.getvalue()[begun.end() if begun else 0 :]
    assert status in (0, 1, 2) and "Traceback" not in error, (arguments, error)
    assert (status == 0) == (not error), (arguments, status, error)
    return error


@pytest.fixture
def papers(toy, tmp_path, monkeypatch) -> Path:
    """Papers whose notebooks are not executed, points not swept, and runs not trained."""
    path = toy()
    toy("other")
    monkeypatch.setenv("SWARMBOOK_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)

    def execute(paper, parameters=None, *_, **__):
        json.dumps(parameters, allow_nan=False)
        return execution.Execution(paper.notebook, paper.notebook, ())

    def swept(points, *_):
        json.dumps([point.parameters for point in points], allow_nan=False)
        return [sweep.Outcome(point, sweep.FAILED, error="not tried") for point in points]

    monkeypatch.setattr(execution, "execute", execute)
    monkeypatch.setattr(sweep, "sweep", swept)
    monkeypatch.setattr(sweep, "cluster", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("swarmbook.reproduction.verify.verify", lambda *_: True)
    monkeypatch.setattr("swarmbook.export.export", lambda run, folder, *_, **__: folder)
    return path


WORDS = ["toy", "other", "toy.smoke", "--profile", "smoke", "paper", "-p", "steps", "rate", "seeds", "note", "data"]
WORDS += [
    "device",
    "3",
    "010",
    "1e-3",
    "nan",
    ".inf",
    "[1, 2]",
    "[",
    "{a: 1}",
    "!x 1",
    "&a [*a]",
    "null",
    "~",
    "--fresh",
]
WORDS += [
    "--seeds",
    "0-4",
    "0-9999999999",
    "--workers",
    "2",
    "--scheduler",
    "tls://x:1",
    "--output",
    "here",
    "/dev/null/x",
]
WORDS += [
    "--sample",
    "--all",
    "--within",
    "--seed",
    "--replica",
    "--mean",
    "--json",
    "--",
    "-",
    "",
    "\\udcff",
    "²",
    "run.json",
]
COMMANDS = ["run", "sweep", "verify", "report", "export", "list", "", "--version"]
ARGUMENTS = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=8)), max_size=8)


@given(st.sampled_from(COMMANDS), ARGUMENTS)
@ANY
def test_every_command_line_ends_in_a_sentence(papers, command, arguments):
    with mock.patch("swarmbook.reproduction.report.build", lambda _, output, say: output / "index.html"):
        told([command, *arguments])


YAML = st.one_of(st.text(), st.text("[]{}:,-&*!#|>'\"0123456789abe.\\n ", max_size=40))


@given(YAML)
@ANY
def test_every_value_of_a_parameter_is_taken_or_refused(papers, text):
    for name in ("steps", "rate", "seeds", "note", "data", "device"):
        told(["run", "toy", "-p", name, text])


NAMES = st.sampled_from(["grid", "zip", "seeds", "profiles", "steps", "rate", "smoke", "cpu", "x"])
RANGES = st.sampled_from(["0-4", "0-99999999"])
GRIDS = st.recursive(
    st.one_of(st.none(), st.integers(-2, 10**12), st.floats(), st.text(max_size=5), RANGES),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=4)),
)


@given(st.one_of(YAML, GRIDS.map(json.dumps)))
@ANY
def test_every_grid_is_swept_or_refused(papers, text):
    papers.with_name("sweep.yaml").write_text(text, encoding="utf-8", errors="replace")
    told(["sweep", "toy"])


@st.composite
def changed(draw, value, odd=(None, 0, -1, "", "x", [], {}, [1], {"a": 1}, True)):
    """JSON with one of its parts taken away or replaced."""
    value, place = copy.deepcopy(value), None
    inner = value
    while isinstance(inner, (dict, list)) and inner and (place is None or draw(st.booleans())):
        key = draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        place, inner = (inner, key), inner[key]
    if place is None or draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(odd)) if place is None else value
    if draw(st.booleans()):
        del place[0][place[1]]
    else:
        place[0][place[1]] = draw(st.sampled_from(odd))
    return value


@given(st.data())
@ANY
def test_every_notebook_is_read_or_refused(papers, data):
    before = papers.read_text()
    try:
        papers.write_text(json.dumps(data.draw(changed(json.loads(before)))))
        for command in (
            ["list"],
            ["run", "toy", "-p", "steps", "4"],
            ["sweep", "toy", "--seeds", "0"],
            ["report", "toy"],
        ):
            told(command)
    finally:
        papers.write_text(before)


@given(st.data())
@ANY
def test_every_configuration_in_a_file_is_exported_or_refused(papers, tmp_path, data):
    whole = {"data": "stories_toy", "tokenizer": "bytes", "steps": 2, "width": 8, "heads": 2, "paths": [[0]]}
    whole |= {"lost_stages": [[0, 1]], "recovery": "CheckFree", "start": {"data": "stories_toy", "steps": 1}}
    (tmp_path / "run.json").write_text(json.dumps(data.draw(changed(whole))))
    told(["export", "run.json", "model"])
