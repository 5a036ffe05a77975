"""SkipPipe's reference cases as instances: groups, links, paths and results of the released code; random instances."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from swarmbook.planning.path_rules import PathRules
from swarmbook.planning.pipeline import Pipeline
from swarmbook.simulation.network import SKIPPIPE, SKIPPIPE_FIRST, Network

RELEASED = json.loads((Path(__file__).parents[1] / "papers/skippipe/released.json").read_text())
CASES, SMALL_OPTIMA = RELEASED["cases"], RELEASED["small_optima_case_S"]
TABLES = {"gcp": "google with slip", "gcp_nl_london_fixed": "google repaired"}


def network(name: str) -> Network:
    """The links between the nodes of a case."""
    table = TABLES.get(CASES[name]["network"], "aws")
    values = SKIPPIPE_FIRST if table == "aws" else SKIPPIPE
    return Network(tuple(CASES[name]["node_places"]), table=table, **values)


def instance(name: str, **fields) -> Pipeline:
    """The instance of a case, with other fields of `Pipeline` where they are given."""
    case = CASES[name]
    values = {
        "groups": case["partitions"],
        "hops": network(name).matrix(case["samples_per_microbatch"] * case["bytes_per_sample"]),
        "forward": case["forward_s"],
        "rules": PathRules(case["path_len"], case["max_gap"], case["max_swaps"]),
        "microbatches": case["microbatches_per_data_node"],
        "memory": case["memory"],
    }
    return Pipeline(**{**values, **fields})


def hops_as_released(name: str) -> np.ndarray:
    """The hops of a case [N, N], added up in the order of the released code.

    Its simulator compares times that are equal but for rounding, so that the last bit of a hop can move its result.
    """
    case = CASES[name]
    alone = replace(network(name), overhead=0.0).matrix(case["samples_per_microbatch"] * case["bytes_per_sample"])
    return np.where(np.eye(len(alone), dtype=bool), 0.0, alone + 0.13 + 0.2 + 0.02)


def released(name: str, method: str) -> list[tuple[int, ...]]:
    """The relays of each slot's path that the released planner found: dtfm_skip, skippipe_no_tc2 or skippipe."""
    return [tuple(path[1:]) for path in CASES[name]["results"][method]["paths"]]


@st.composite
def instances(draw) -> Pipeline:
    """Small instances that have a plan: all times are whole 32nds of a second, so that sums of seconds are exact."""
    S = draw(st.integers(2, 4))
    P, D = draw(st.integers(2, S)), draw(st.integers(1, 3))
    rules = PathRules(
        P,
        ahead=draw(st.integers(1, 3)),
        swaps=draw(st.integers(0, 2)),
        lag=draw(st.integers(0, 2)),
        lags=draw(st.integers(0, 3)),
        shared=draw(st.booleans()),
    )
    # where every pattern of holes is allowed, slots take turns at it; otherwise all may need the same stages
    least = -(-D * (P - 1) // (S - 1)) if rules.ahead > S - P else D
    sizes = [D, *(draw(st.integers(least, least + 1)) for _ in range(S - 1))]
    N = sum(sizes) + draw(st.integers(0, 1))
    nodes = iter(draw(st.permutations(range(N))))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    return Pipeline(
        tuple(tuple(next(nodes) for _ in range(size)) for size in sizes),
        rng.integers(0, draw(st.sampled_from([2, 40])), (N, N)) / 8,
        rng.integers(1, draw(st.sampled_from([2, 16])), N) / 8,
        rules,
        microbatches=draw(st.integers(1, 4)),
        memory=draw(st.integers(1, 3)),
        head=draw(st.sampled_from([0.0, 0.25])),
        gap=draw(st.sampled_from([0.0, 0.125])),
        launch_gap=draw(st.sampled_from([0.0, 0.25])),
    )
