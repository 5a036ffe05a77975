"""What is no number is refused where it enters: it would make every later number NaN without a word."""

import dataclasses
import math

import numpy as np
import pytest

from swarmbook.ensembles.experts import allocate, gain
from swarmbook.errors import ConfigError
from swarmbook.planning import bounds, placement
from swarmbook.planning.path_rules import PathRules
from swarmbook.planning.pipeline import Pipeline
from swarmbook.simulation import checkpointing
from swarmbook.simulation.gossip_theory import Quadratic, Update
from swarmbook.simulation.network import Network
from swarmbook.simulation.recovery_schemes import Scheme, Workload
from swarmbook.simulation.sync_latency import Delay, Link

HOPS = np.ones((5, 5))
RULES = PathRules(visits=2)
GIVEN = {
    Delay: {},
    Link: {},
    Network: {"locations": ("Iowa", "Japan")},
    Workload: {},
    Scheme: {"source": "store", "period": 5},
    Update: {},
    Quadratic: {},
    PathRules: {"visits": 3},
    Pipeline: {"groups": ((0,), (1, 2), (3, 4)), "hops": HOPS, "forward": 1.0, "rules": RULES},
}
NUMBERS = [
    (kind, field.name)
    for kind in GIVEN
    for field in dataclasses.fields(kind)
    if any(name in str(field.type) for name in ("int", "float", "Array")) and field.name not in ("groups", "latency")
]


@pytest.mark.parametrize("kind", GIVEN, ids=lambda kind: kind.__name__)
def test_what_is_given_is_sound(kind):
    kind(**GIVEN[kind])


@pytest.mark.parametrize(("kind", "field"), NUMBERS, ids=lambda part: getattr(part, "__name__", part))
def test_no_field_of_a_constructor_takes_nan(kind, field):
    with pytest.raises(ConfigError, match=f"{field}|visits|nan"):
        kind(**{**GIVEN[kind], field: math.nan})


INFINITE = {"replicas", "bandwidth", "threshold", "default_gib_per_s", "share"}  # means something there


FINITE = [(kind, field) for kind, field in NUMBERS if field not in INFINITE]


@pytest.mark.parametrize(("kind", "field"), FINITE, ids=lambda part: getattr(part, "__name__", part))
def test_nor_what_is_infinite_where_that_means_nothing(kind, field):
    with pytest.raises(ConfigError):
        kind(**{**GIVEN[kind], field: math.inf})


CALLS = {
    "gains": lambda x: allocate([1, x], 10),
    "budget": lambda x: allocate([1, 2], x),
    "least": lambda x: allocate([1, 2], 10, x),
    "most": lambda x: allocate([1, 2], 10, 0, x),
    "losses": lambda x: gain([1, 2], [3, x]),
    "size": lambda x: Link().draw(np.random.default_rng(0), 3, x),
    "effort": lambda x: bounds.lower_bound(Pipeline(**GIVEN[Pipeline]), effort=x),
    "forward": lambda x: placement.place(HOPS, (1, 2, 2), np.random.default_rng(0), forward=x),
    "iterations": lambda x: checkpointing.hours(x, 1.0),
    "chance": lambda x: checkpointing.slowdown(x, 5),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_function_takes_nan(name):
    with pytest.raises(ValueError, match=name):
        CALLS[name](math.nan)
