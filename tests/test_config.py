"""What a configuration accepts, and what changes its key."""

import os
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest

from swarmbook import config as configs
from swarmbook.config import NUMERICS, RunConfig, choose, grid, run_config
from swarmbook.data import tokenization
from swarmbook.errors import ConfigError
from swarmbook.methods import consistency
from swarmbook.methods.gossip_groups import MATCHINGS
from swarmbook.methods.measurements import MEASUREMENTS
from swarmbook.methods.optimizers import OPTIMIZERS, Optimizer
from swarmbook.methods.recovery import OURS, RULES, Strategy, norm_average
from swarmbook.methods.routing import ROUTES
from swarmbook.methods.sync import OURS as SYNC_OURS
from swarmbook.methods.sync import SYNCS, Method
from swarmbook.results import Runs

BASE = {"data": "stories_toy", "steps": 20, "evaluate_every": 10}
PAIR = {"replicas": 2, "common_start": True, "sync_every": 5}
ONE = {"replicas": 1, "group": 1, "sync_every": 5}
PARENT = run_config(**{**BASE, "steps": 10})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stage": 6}, "unknown field 'stage': did you mean 'stages'"),
        ({"route": "swaped ends"}, "unknown route 'swaped ends': did you mean 'swapped ends'"),
        ({"recovery": "chekfree"}, "unknown recovery 'chekfree'"),
        ({"sync": "noloco"}, "unknown sync 'noloco': did you mean 'NoLoCo'"),
        ({"sync": "DiLoCo", "matching": "hypercubes"}, "unknown matching 'hypercubes': did you mean 'hypercube'"),
        ({"sync": "NoLoCo"}, "cannot deal 1 replicas into groups of 2: give a number of replicas that size=2 divides"),
        ({"sync": "NoLoCo", "replicas": 6, "matching": "hypercube"}, "must be a power of size=2, such as 4 or 8"),
        ({"sync": "DiLoCo", "replicas": 2}, "sync 'DiLoCo' needs common_start=True"),
        ({"sync": "gossip", "replicas": 6, "group": 4}, "cannot deal 6 replicas into groups of 4"),
        ({"sync_every": 0}, "sync_every=0"),
        ({"outer_lr": 0.0}, "outer_lr=0.0"),
        ({"outer_momentum": 1.0}, "outer_momentum=1.0"),
        ({"consensus": -0.1}, "consensus=-0.1"),
        ({"density": 0.0}, "density=0.0"),
        ({"mixing": 1.1}, "mixing=1.1"),
        ({"absent": -0.1}, "absent=-0.1"),
        ({"absent": 1.0}, "absent=1.0"),
        ({"absent": 0.1}, "absent=0.1 does nothing for sync 'none': leave it out, or take one of all-reduce, DiLoCo"),
        ({"schedule_steps": 10}, "schedule_steps=10 does nothing for schedule 'constant': leave it out, or take 'cos"),
        ({"lr_floor": 0.5}, "lr_floor=0.5 does nothing for schedule 'constant'"),
        (
            {"moments": "average"},
            "moments='average' does nothing for recovery 'none': leave it out, or take another",
        ),
        ({"boost_half_life": 5.0}, "boost_half_life=5.0 does nothing for recovery 'none'"),
        ({"failing": "all"}, "failing='all' does nothing for recovery 'none'"),
        ({"microbatches": 10**12}, "stages=6, replicas=1, microbatches=1000000000000 are too many together"),
        ({"stages": 10**12}, "stages=1000000000000, replicas=1, microbatches="),
        ({"steps": 10**12, "away": (("1.2", 3, None),)}, "steps=1000000000000, replicas=1, stages=6 are too many"),
        ({"recovery": "random", "failing": "interior", "failure_rate": 0.1, "stages": 2}, "leaves none of stages=2"),
        ({"rejoin": "fast"}, "rejoin='fast' does nothing for sync 'none'"),
        ({**PAIR, "sync": "NoLoCo", "rejoin": "fast"}, "rejoin='fast' does nothing where no replica is absent"),
        ({**ONE, "sync": "NoLoCo", "absent": 0.1, "rejoin": "own"}, "and more replicas than one"),
        ({**PAIR, "sync": "gossip", "absent": 0.1, "rejoin": "own"}, "which has no slow weights"),
        ({**PAIR, "sync": "DiLoCo", "absent": 0.1, "rejoin": "fast"}, "whose result replaces all fast weights at once"),
        ({"sync": "DiLoCo"}, "sync_every=50 leaves no exchange in steps=20: give a smaller one, or sync='none'"),
        ({**PAIR, "sync": "all-reduce", "fragments": 2}, "fragments=2 does nothing for sync 'all-reduce'"),
        ({**PAIR, "sync": "all-reduce", "delay": 2}, "delay=2 does nothing for sync 'all-reduce'"),
        ({**PAIR, "sync": "all-reduce", "mixing": 0.5}, "mixing=0.5 does nothing for sync 'all-reduce'"),
        ({**PAIR, "sync": "all-reduce", "density": 0.5}, "leave it out, or take one of SparseLoCo"),
        (
            {**PAIR, "sync": "DiLoCo", "group": 1},
            "group=1 does nothing for sync 'DiLoCo': leave it out",
        ),
        ({**PAIR, "sync": "gossip", "consensus": 0.5}, "consensus=0.5 does nothing for sync 'gossip'"),
        ({"storage": "fp16"}, "storage='fp16'"),
        ({"shards": "domain"}, "shards='domain'"),
        (
            {"shards": "domains", "replicas": 2},
            "shares out the 1 domain(s) of data='stories_toy' among replicas=2: join two or more with '+'",
        ),
        (
            {"shards": "domains", "data": "stories_toy+fiction_austen"},
            "shares out the 2 domain(s) of data='stories_toy+fiction_austen' among replicas=1",
        ),
        (
            {"sync": "NoLoCo, one tensor", "replicas": 2, "consensus": 0.5},
            "consensus=0.5 must be outer_lr=0.7 for sync 'NoLoCo, one tensor'",
        ),
        ({"sync": "DiLoCo", "fragments": 7}, "fragments=7 must be at most 6: there are stages=6"),
        ({"sync": "DiLoCo", "fragments": 6, "sync_every": 4}, "fragments=6 must be at most 4"),
        ({"sync": "DiLoCo", "delay": 50}, "delay=50 must be less than sync_every=50"),
        ({"measurements": ["own shard"], "held_out": 2, "replicas": 4}, "held_out=2 must be at least replicas=4"),
        ({"failure_rate": 1.5, "recovery": "CheckFree"}, "failure_rate=1.5"),
        ({"failure_rate": 0.1}, "failure_rate=0.1 needs a recovery: none, random, identity"),
        ({"lost_stages": [(3, 2)]}, "lost_stages=((3, 2),) needs a recovery"),
        (
            {"lost_stages": [(20, 2)], "recovery": "CheckFree"},
            "lost_stages=((20, 2),): a loss is (step, stage) with step < steps=20",
        ),
        ({"lost_stages": [(3, 7)], "recovery": "CheckFree"}, "stage from 1 to 6, or 0 for embedding and head"),
        ({"lost_stages": [(3, -1)], "recovery": "CheckFree"}, "lost_stages.0.1=-1"),
        ({"lost_stages": [(3, 2, 1)], "recovery": "CheckFree"}, "lost_stages.0=(3, 2, 1)"),
        ({"failing": "ends"}, "failing='ends'"),
        ({"moments": "mean"}, "moments='mean'"),
        ({"boost_half_life": 0.0}, "boost_half_life=0.0"),
        ({"keep_every": 0}, "keep_every=0"),
        ({"start": PARENT, "width": 32}, "width=32 must be that of the run it starts from, 64"),
        ({"start": PARENT, "stages": 4}, "stages=4 must be that of the run it starts from, 6"),
        ({"start": PARENT, "replicas": 2}, "replicas=2 must be that of the run it starts from, 1"),
        ({"start": PARENT, "steps": 10}, "steps=10 must be more than the 10 of the run it starts from"),
        (
            {"start": PARENT, "recovery": "random", "lost_stages": [(3, 1)]},
            "lost_stages=((3, 1),) must be at steps from 10 on",
        ),
        ({"start": {**BASE, "lr": -1.0}}, "start.lr=-1.0"),
        ({"heads": 3}, "width=64 must be an even multiple of heads=3"),
        ({"route": "swapped ends", "microbatches": 3}, "microbatches=3"),
        ({"route": "planned"}, "route 'planned' needs paths"),
        (
            {"route": "planned", "microbatches": 1, "paths": ((0, 1, 2), (3, 4, 5))},
            "paths holds 2 paths, of which microbatches=1 take the first ones only",
        ),
        ({"route": "planned", "paths": ((0, 2, 4), (0, 1))}, "leave stages 3, 5 untrained"),
        (
            {"route": "random paths", "visits": 5.9, "microbatches": 1},
            "visits=5.9 cannot be the mean of microbatches=1, which would visit 5.9 stages together: give 5 or 6",
        ),
        ({"route": "blind paths", "visits": 1.3, "microbatches": 2}, "stages together: give 1 or 1.5"),
        ({"route": "planned", "paths": ((0, 6),)}, "the path (0, 6) is not one of stages=6: give some of the stages"),
        ({"paths": ((0, 1),)}, "paths=((0, 1),) does nothing for route 'in order': it is for planned"),
        ({"visits": 3}, "visits=3.0 does nothing for route 'in order': it is for random paths, blind paths"),
        ({"route": "blind paths", "swaps": 1}, "swaps=1 does nothing for route 'blind paths': it is for random paths"),
        ({"route": "random paths", "visits": 7}, "visits=7.0 must be from 1 to stages=6"),
        ({"route": "random paths", "visits": 0.5}, "visits=0.5"),
        ({"route": "random paths", "swap_lag": 0}, "swap_lag=0"),
        ({"route": "random paths", "visits": 2, "reach": 2}, "reach=2 leaves no paths"),
        ({"evaluate_every": 15}, "evaluate_every=15 must be a multiple of log_every=10"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"steps": 0}, "steps=0"),
        ({"measurements": ["loss jumps"]}, "unknown measurement 'loss jumps': did you mean 'loss jump'"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ConfigError) as error:
        run_config(**{**BASE, **fields})
    assert message in str(error.value)


def test_a_missing_field_is_named():
    with pytest.raises(ConfigError, match="data is missing"):
        run_config(steps=10)


def test_grid_is_the_product_of_its_axes():
    configs = grid(BASE, route=["in order", "swapped ends"], seed=range(3))
    assert [(c.route, c.seed) for c in configs] == [
        (route, seed) for route in ("in order", "swapped ends") for seed in range(3)
    ]
    with pytest.raises(ConfigError, match=r"write route=\['in order'\]"):
        grid(BASE, route="in order")
    with pytest.raises(ConfigError, match="seed=3 must be a list"):
        grid(BASE, seed=3)


RENAMED = [("losses", "lost_stages", [(3, 2)]), ("probes", "measurements", ["loss jump"])]


@pytest.mark.parametrize(("recorded", "name", "value"), RENAMED)
def test_a_field_has_one_name_in_records_and_another_here(recorded, name, value):
    base = {**BASE, "recovery": "CheckFree"}
    config = run_config(**base, **{name: value})
    assert run_config(**base, **{recorded: value}) == config == RunConfig(**base, **{recorded: value})
    assert grid({**base, recorded: value}) == [config] == grid(base, **{recorded: [value]})
    assert grid({**base, recorded: value}, **{name: [[], value]})[1] == config  # an axis replaces what the base has
    assert grid(config, **{recorded: [[]]}) == [run_config(**base)]
    dumped = config.model_dump(mode="json", exclude_defaults=True)
    assert recorded in dumped and name not in dumped and run_config(**dumped) == config
    assert run_config(**{**base, "steps": 30}, start=dumped).start == config
    runs = Runs([run_config(**base), config], [None, None])
    assert runs.axes == [recorded, "seed"]
    for spelt in (recorded, name):
        assert runs.where(**{spelt: getattr(config, name)}).configs == [config]
    both = {name: value, recorded: value}
    for given in (lambda: run_config(**base, **both), lambda: grid({**base, **both}), lambda: grid(base, **both)):
        with pytest.raises(ConfigError, match=f"{recorded} and {name} are one field: give {name} alone"):
            given()


def test_every_field_says_what_it_is():
    for name, field in RunConfig.model_fields.items():
        assert field.description and field.description.endswith("."), name


OTHER = {
    "data": "fiction_austen", "data_limit": 10_000, "stages": 7, "layers_per_stage": 2, "width": 32, "heads": 2,
    "hidden": 32, "init_std": 0.08, "sequence": 64,
    "replicas": 2, "microbatches": 2, "batch": 4, "steps": 30, "lr": 2e-3, "schedule": "cosine",
    "warmup": 5, "clip": 0.5, "precision": "bf16", "route": "swapped ends", "recovery": "random",
    "failing": "interior", "moments": "keep", "slow_weights": "reset", "downtime": 3,
    "lr_boost": 1.2, "boost_half_life": 50.0, "keep_every": 50,
    "log_every": 5, "evaluate_every": 20, "held_out": 8, "evaluate_on": ("satire_devil",),
    "measurements": ("loss jump",), "start": PARENT, "branch": PARENT, "schedule_steps": 40, "lr_floor": 0.5,
    "seed": 1, "common_start": True, "sync": "DiLoCo", "sync_every": 10, "outer_lr": 0.5,
    "outer_momentum": 0.9, "consensus": 0.3, "group": 4, "matching": "ring", "density": 0.1, "fragments": 2,
    "delay": 3, "mixing": 0.5, "absent": 0.1, "rejoin": "fast", "storage": "bf16",
    "optimizer": "own", "weight_decay": 0.1, "method": {"beta2": 0.9}, "clipping": "workers",
}  # fmt: skip


PLANS = [[[0, 1, 2, 3, 4, 5]], [[1, 0, 2, 3, 4, 5]], [[0, 1, 2], [0, 3, 4, 5]]]


def test_every_field_changes_the_key(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "own", Optimizer(lambda x: None))
    base = run_config(**BASE)
    several = {**BASE, "replicas": 4, "sync_every": 5, "common_start": True}
    exchanges = {
        name: ({**several, "sync": "SparseLoCo" if name == "density" else "NoLoCo"}, OTHER[name])
        for name in consistency.EXCHANGE_FIELDS
    }
    exchanges["rejoin"][0]["absent"] = 0.1
    for name, (fields, value) in exchanges.items():
        assert run_config(**{**fields, name: value}).key != run_config(**fields).key, name
    lossy = {**BASE, "recovery": "random", "failure_rate": 0.1}
    read = {
        "sync": several,
        "slow_weights": {**lossy, **several, "sync": "NoLoCo"},
        "downtime": lossy,
        **dict.fromkeys(("failing", "moments", "lr_boost", "boost_half_life"), lossy),
    }
    read |= dict.fromkeys(("schedule_steps", "lr_floor"), {**BASE, "schedule": "cosine"})
    alone = {name: value for name, value in OTHER.items() if name not in exchanges}
    for name, value in alone.items():
        fields = read.get(name, BASE)
        assert run_config(**{**fields, name: value}).key != run_config(**fields).key, name
    keys = {run_config(**{**read.get(name, BASE), name: value}).key for name, value in alone.items()}
    assert len(keys | {base.key}) == len(alone) + 1
    routed = {"paths", "visits", "swaps", "swap_lag", "reach", "keep_first"}
    others = {"tokenizer", "shards", "failure_rate", "lost_stages", "away", "detour"} | routed
    assert set(RunConfig.model_fields) - set(OTHER) == others
    assert run_config(**BASE).key == base.key
    lossy = {"failure_rate": 0.1}, {"failure_rate": 0.2}, {"lost_stages": [(3, 2)]}, {"lost_stages": [(2, 3)]}
    insured = {run_config(**BASE, recovery="random", **fields).key for fields in ({}, *lossy)}
    assert len(insured) == len(lossy) + 1
    limits = [{}, {"visits": 4.5}, {"swaps": 2}, {"swap_lag": 2}, {"reach": 5}, {"keep_first": False}]
    drawn = {run_config(**{**BASE, "visits": 4, "swaps": 1, **fields}, route="random paths").key for fields in limits}
    planned = {run_config(**BASE, route="planned", paths=paths).key for paths in PLANS}
    assert len(drawn | planned | {base.key}) == len(limits) + 3 + 1
    there = [{"away": [("2.3", 4, end)], "detour": way} for end in (None, 8, 9) for way in ("skip", "peer")]
    assert len({run_config(**BASE, replicas=2, recovery="random", **fields).key for fields in there}) == len(there)
    joined = {**BASE, "data": "stories_toy+fiction_austen", "replicas": 3}
    assert run_config(**joined, shards="domains").key != run_config(**joined).key


DEFAULTS = {
    "tokenizer": "swarmbook", "data_limit": None, "stages": 6, "layers_per_stage": 1, "width": 64, "heads": 4,
    "hidden": 256, "sequence": 128, "replicas": 1, "microbatches": 4, "batch": 2, "lr": 1e-3, "schedule": "constant",
    "warmup": 0, "clip": 1.0, "precision": "fp32", "route": "in order", "recovery": "none", "failure_rate": 0.0,
    "failing": "stages", "lost_stages": (), "moments": "reset", "slow_weights": "keep", "downtime": 0,
    "away": (), "detour": "skip",
    "lr_boost": 1.1, "boost_half_life": None,
    "keep_every": 100, "log_every": 10, "evaluate_every": 100, "held_out": 64, "evaluate_on": (), "measurements": (),
    "start": None, "branch": None, "schedule_steps": None, "lr_floor": 0.1,
    "seed": 0, "common_start": False, "sync": "none", "sync_every": 50, "outer_lr": 0.7,
    "outer_momentum": 0.5, "consensus": None, "group": 2, "matching": "random", "density": 1.0, "fragments": 1,
    "delay": 0, "mixing": 0.0, "absent": 0.0, "rejoin": "slow", "shards": "mixed", "storage": "fp32", "paths": (),
    "visits": None, "swaps": 0, "swap_lag": 1, "reach": None, "keep_first": True,
    "optimizer": "Adam", "weight_decay": 0.0, "method": (), "init_std": 0.02, "clipping": "cells",
}  # fmt: skip


def test_defaults_are_frozen_because_keys_leave_them_out():
    found = {name: field.default for name, field in RunConfig.model_fields.items() if not field.is_required()}
    assert found == DEFAULTS and NUMERICS == 1, (
        "a default changed: raise NUMERICS, or add the new field here if its default changes no number"
    )


def test_what_the_arms_of_a_grid_share_is_in_the_key_of_those_alone_that_read_it():
    shared = {"sync_every": 5, "outer_lr": 0.5, "outer_momentum": 0.9}
    for sync in ("none", "all-reduce"):
        fields = {**BASE, **PAIR, "sync_every": 50, "sync": sync}
        assert run_config(**{**fields, **shared}).key == run_config(**fields).key
    assert run_config(**BASE, lr_boost=1.2).key == run_config(**BASE).key
    treated = {"moments": "keep", "lr_boost": 1.2, "boost_half_life": 5.0}
    for recovery, decided in (("rollback", treated), ("learning rate alone", {"moments": "keep"})):
        assert run_config(**BASE, recovery=recovery, **decided).key == run_config(**BASE, recovery=recovery).key
    bare = {**BASE, "recovery": "random", "lr_boost": 1.0}
    assert run_config(**bare, boost_half_life=5.0).key == run_config(**bare).key
    for route, idle in (({}, ("swap_lag", "reach", "keep_first")), ({"visits": 4}, ("swap_lag",))):
        fields = {**BASE, "route": "random paths", **route}
        for name in ("swap_lag", "reach", "keep_first"):
            other = run_config(**{**fields, name: {"swap_lag": 2, "reach": 3, "keep_first": False}[name]})
            assert (other.key == run_config(**fields).key) == (name in idle), name
    unharmed = {**BASE, "recovery": "random", "failing": "all"}
    assert run_config(**unharmed).key == run_config(**BASE, recovery="random").key
    assert run_config(**unharmed, failure_rate=0.1).key != run_config(**BASE, recovery="random", failure_rate=0.1).key
    keys = {run_config(**{**BASE, **PAIR, "sync": "DiLoCo", name: value}).key for name, value in shared.items()}
    assert len(keys) == 2 + 1  # PAIR has this interval, but the others differ


def test_a_users_own_exchange_may_read_any_number(monkeypatch):
    monkeypatch.setitem(SYNCS, "mine", Method(lambda x: None, groups=False))
    assert run_config(**BASE, **PAIR, sync="mine", consensus=0.3, density=0.5).consensus == 0.3
    with pytest.raises(ConfigError, match="group=1 does nothing for sync 'mine'"):
        run_config(**BASE, **PAIR, sync="mine", group=1)


def test_a_field_set_to_its_default_does_not_change_the_key():
    base = run_config(data="stories_toy", steps=20)
    for name, value in DEFAULTS.items():
        assert run_config(data="stories_toy", steps=20, **{name: value}).key == base.key, name
    assert run_config(**DEFAULTS, data="stories_toy", steps=20).key == base.key


def test_a_new_field_leaves_recorded_keys_alone(monkeypatch):
    class Newer(RunConfig):
        momentum: float = 0.0

    before = run_config(**BASE).key
    assert Newer(**BASE).key == before != Newer(**BASE, momentum=0.5).key
    monkeypatch.setattr(configs, "NUMERICS", NUMERICS + 1)
    assert run_config(**BASE).key != before


def test_the_key_of_a_run_depends_on_all_that_it_starts_from():
    def key(**fields):
        return run_config(**BASE, start=run_config(**{**BASE, "steps": 10, **fields})).key

    keys = [key(), key(lr=2e-3), key(seed=1), key(steps=5), key(start=run_config(**{**BASE, "steps": 5}))]
    assert len(set(keys)) == len(keys) and key() == keys[0]
    config = run_config(**BASE, start=PARENT)
    assert run_config(**config.model_dump(mode="json")) == config  # as it is read back from a record
    assert [c.start for c in grid(config, seed=[1, 2])] == [PARENT, PARENT]


def test_texts_that_are_evaluated_on_change_the_key(monkeypatch):
    config = run_config(**BASE, evaluate_on=["satire_devil"])
    before, fingerprint = config.key, tokenization.fingerprint
    monkeypatch.setattr(
        tokenization, "fingerprint", lambda source, *rest: fingerprint(source, *rest) + "x" * (source[0] == "s")
    )
    after = config.key
    monkeypatch.setattr(
        tokenization, "fingerprint", lambda source, *rest: fingerprint(source, *rest) + "x" * (source == "satire_devil")
    )
    assert len({before, after, config.key}) == 3
    assert run_config(**BASE).key == PARENT.model_copy(update={"steps": 20}).key


def own_key(monkeypatch, rule, name="mine", **copies):
    monkeypatch.setitem(RULES, name, Strategy(rule, **copies))
    return run_config(**BASE, recovery=name).key


def test_editing_ones_own_rule_changes_the_key(monkeypatch):
    def half(lost):
        return 0.5

    def third(lost):
        return 1 / 3

    def half_again(lost):
        return 0.5

    def half_by_default(lost, share=0.5):
        return share

    def third_by_default(lost, share=1 / 3):
        return share

    def fifth_by_keyword(lost, *, share=0.2):
        return share

    def sixth_by_keyword(lost, *, share=1 / 6):
        return share

    def closing(share):
        return lambda lost: share

    def choosing(function):
        return lambda lost: function(lost)

    rules = [half, third, half_by_default, third_by_default, fifth_by_keyword, sixth_by_keyword, closing(0.5)]
    rules += [closing(1 / 3), closing([half]), closing([third]), closing({"a": half}), choosing(half), choosing(third)]
    rules += [partial(half_by_default, share=0.2), partial(half_by_default, share=0.3)]
    keys = [own_key(monkeypatch, rule) for rule in rules]
    assert len(set(keys)) == len(keys)
    assert own_key(monkeypatch, half) == own_key(monkeypatch, half_again)
    assert own_key(monkeypatch, closing(0.5)) == own_key(monkeypatch, closing(0.5))
    assert own_key(monkeypatch, half) != own_key(monkeypatch, half, name="by another name")


SHARE = 1.0


def scaled(weight):
    return SHARE * weight


def test_editing_what_ones_own_rule_reads_or_calls_changes_the_key(monkeypatch):
    def rule(lost):
        return scaled(lost)

    first = own_key(monkeypatch, rule)
    monkeypatch.setitem(globals(), "SHARE", 0.0)
    second = own_key(monkeypatch, rule)
    monkeypatch.setitem(globals(), "scaled", lambda weight: weight)
    third = own_key(monkeypatch, rule)
    assert len({first, second, third}) == 3


def test_a_rule_that_holds_what_cannot_be_compared_is_refused_by_name(monkeypatch):
    lock = threading.Lock()
    with pytest.raises(ConfigError, match="'lock' in recovery 'mine' is a lock"):
        own_key(monkeypatch, lambda lost: lock)


def test_what_ones_own_rule_keeps_changes_the_key(monkeypatch):
    def rule(lost):
        lost.draw()

    copies = [{}, {"keeps": "ends"}, {"keeps": "stages"}, {"keeps": "stages", "holders": (1,)}]
    copies += [{"keeps": "stages", "holders": (1,), "always": True}]
    copies += [{"keeps": "stages", "holders": (1,), "always": True, "forwards": True}]
    keys = [own_key(monkeypatch, rule, **fields) for fields in copies]
    assert len(set(keys)) == len(copies)


def test_rules_made_by_our_functions_are_still_ones_own(monkeypatch):
    cubed = own_key(monkeypatch, norm_average(power=3))
    assert cubed == own_key(monkeypatch, norm_average(power=3)) != own_key(monkeypatch, norm_average(power=4))
    shipped = run_config(**BASE, recovery="CheckFree").key
    assert own_key(monkeypatch, norm_average(power=3), name="CheckFree") != shipped
    monkeypatch.setitem(RULES, "CheckFree", OURS["CheckFree"])
    assert run_config(**BASE, recovery="CheckFree").key == shipped


def test_editing_ones_own_route_or_measurement_changes_the_key(monkeypatch):
    def in_order(*sizes):
        return ROUTES["in order"](*sizes)

    def swapped(*sizes):
        return ROUTES["swapped ends"](*sizes)

    def nothing(pack, asking):
        return []

    def one(pack, asking):
        return [(0, "mine", 0, "", 1.0)]

    def key(registry, part, fields):
        monkeypatch.setitem(registry, "mine", part)
        return run_config(**BASE, **fields).key

    routes = [key(ROUTES, part, {"route": "mine"}) for part in (in_order, swapped, in_order)]
    measured = [key(MEASUREMENTS, part, {"measurements": ["mine"]}) for part in (nothing, one, nothing)]
    for first, second, third in (routes, measured):
        assert first == third != second
    both = run_config(**BASE, measurements=["mine", "loss jump"]).key
    assert both not in measured


def test_editing_ones_own_sync_or_matching_changes_the_key(monkeypatch):
    def nothing(x):
        pass

    def sending(x):
        x.send(copies=1, hops=1)

    def backwards(replicas, *rest):
        return np.arange(replicas)[::-1].reshape(-1, 2)

    def mixed(replicas, step, rng, size=2):
        return rng.permutation(replicas).reshape(-1, 2)

    def key(**fields):
        return run_config(**BASE, replicas=4, sync_every=10, **fields).key

    def own(rule, **options):
        monkeypatch.setitem(SYNCS, "mine", Method(rule, **options))
        return key(sync="mine")

    methods = [own(nothing), own(sending), own(nothing, keeps=False), own(nothing, groups=False)]
    methods += [own(nothing, gradients=True)]
    assert len(set(methods)) == len(methods) and own(nothing) == methods[0]
    shipped = key(sync="gossip")
    monkeypatch.setitem(SYNCS, "gossip", Method(nothing, keeps=False))
    assert key(sync="gossip") != shipped
    monkeypatch.setitem(SYNCS, "gossip", SYNC_OURS["gossip"])
    assert key(sync="gossip") == shipped
    matchings = []
    for part in (backwards, mixed, backwards):
        monkeypatch.setitem(MATCHINGS, "mine", part)
        matchings.append(key(sync="gossip", matching="mine"))
    assert matchings[0] == matchings[2] != matchings[1]


SCRIPT = """
from swarmbook.config import run_config
from swarmbook.methods.measurements import measurement
from swarmbook.methods.recovery import recovery

class Thing:
    pass

def made(thing, names):
    def rule(lost, other=thing, *, also=frozenset({"ends", "stages", "run"})):
        if lost.stage in {"embedding", "norm", "head"}:
            return thing, names, [other], (lambda x: thing)(also)
    return rule

recovery("mine", keeps="ends")(made(Thing(), {"x": {"some", "names"}}))

@measurement("mine")
def measure(pack, asking, thing=Thing()):
    return [name for name in pack if name in {"a", "b", "c", "d"}]

print(run_config(data="stories_toy", steps=20, recovery="mine", measurements=["mine"]).key)
"""


def test_keys_are_the_same_in_every_process():
    keys = set()
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        keys.add(done.stdout)
    assert len(keys) == 1


def test_ones_own_route_gets_the_fields_that_it_asks_for(monkeypatch):
    def reversed_paths(replicas, stages, microbatches, rng, *, paths, own=3):
        assert own == 3
        return ROUTES["planned"](replicas, stages, microbatches, rng, paths=[path[::-1] for path in paths])

    monkeypatch.setitem(ROUTES, "reversed", reversed_paths)
    config = run_config(**BASE, route="reversed", paths=[[0, 2, 4]])
    assert config.route_at(0)[:, 0, 0, 1].tolist() == [-1, -1, -1, -1, 4, 2, 0]
    assert config.key != config.model_copy(update={"route": "planned"}).key
    with pytest.raises(ConfigError, match="swaps=1 does nothing for route 'reversed'"):
        run_config(**BASE, route="reversed", paths=[[0, 2, 4]], swaps=1)


def test_purposes_and_seeds_draw_different_numbers():
    def draws(seed, *purpose):
        return run_config(**BASE, seed=seed).rng(*purpose).random(3)

    a = draws(0, "failures")
    assert np.array_equal(a, draws(0, "failures"))
    for other in (draws(1, "failures"), draws(0, "batches"), draws(0, "failures", 0), draws(0, "sync")):
        assert not np.array_equal(a, other)


def test_choose_names_the_profiles():
    assert choose("cpu", smoke=1, cpu=2) == 2
    with pytest.raises(ConfigError, match="unknown profile 'gpuu': did you mean 'gpu'"):
        choose("gpuu", cpu=1, gpu=2)


def test_reading_recorded_runs_needs_no_torch():
    code = "import sys, swarmbook.runs, swarmbook.analysis.claims; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"steps": 20, "warmup": 30}, "warmup=30 must be at most the 20 steps"),
        (
            {"steps": 20, "warmup": 15, "schedule": "cosine", "schedule_steps": 10},
            "warmup=15 must be at most the 10 steps",
        ),
        ({"lr": float("inf")}, "lr=inf: .*finite"),
        ({"lr_boost": float("inf")}, "lr_boost=inf: .*finite"),
        ({"clip": float("inf")}, "clip=inf: .*finite"),
        ({"outer_momentum": float("nan")}, "outer_momentum=nan"),
        ({"sync": "NoLoCo", "replicas": 2, "group": 1, "matching": "hypercube"}, "in groups of 1: give a larger size"),
        (
            {"schedule": "cosine", "lr_floor": 0.0, "schedule_steps": 1, "recovery": "rollback", "failure_rate": 0.1},
            "lr_floor=0 with schedule_steps=1 leaves no learning rate from step 1 on",
        ),
    ],
)
def test_what_would_fail_or_wait_for_ever_is_refused_at_once(fields, said):
    with pytest.raises(ConfigError, match=said):
        run_config(**{**BASE, **fields})
