"""Planners by name: which relays every microbatch goes through, and in what order nodes work (SkipPipe).

- `PLANNERS[name](pipeline, rng)` gives a `Plan`. All planners keep the rules and the capacity of relays (TC1)
- "annealing" is the one to use: `swarmbook.planning.annealing` over paths and orders together
- "blind" stands for DT-FM-skip, whose paths keep the rules and know nothing of the network. As they are drawn at
  random, its result is a distribution
- "shortest" is SkipPipe without the collision constraint TC2
- "conflict-based" is the search that SkipPipe's authors released, rebuilt in `swarmbook.planning.conflict_based_search`
- `planned` records what a search finds. From the record the plan is read, checked and replayed
- `full_pipelines` is the baseline in which no microbatch skips anything (DT-FM)

Serves: all of SkipPipe's planning figures, and its claims K1, K5, "planner" and "planner, rebuilt".
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path as File
from typing import Literal

import numpy as np
import pandas as pd

from swarmbook.errors import PlanError
from swarmbook.planning.annealing import annealing_search
from swarmbook.planning.conflict_based_search import conflict_search
from swarmbook.planning.encoding import SearchResult
from swarmbook.planning.path_rules import PathRules
from swarmbook.planning.pipeline import Pipeline, Plan
from swarmbook.planning.replay import replay
from swarmbook.planning.slot_paths import random_paths, short_paths
from swarmbook.records.computed import computed
from swarmbook.records.keys import key_of

OPERATION = ("node", "microbatch", "position")  # columns of a recorded plan
# of what each search finds: to be raised when the same search would give another plan, or count otherwise
VERSION = {"annealing": 2, "conflict-based": 1}

Planner = Callable[[Pipeline, np.random.Generator], Plan]
PLANNERS: dict[str, Planner] = {}


def planner(name: str) -> Callable[[Planner], Planner]:
    """Register a planner (pipeline, generator) -> plan under a name."""

    def register(rule: Planner) -> Planner:
        PLANNERS[name] = rule
        return rule

    return register


@planner("blind")
def blind(pipeline: Pipeline, rng: np.random.Generator) -> Plan:
    """Random paths that do not look at the network; nodes do backward passes first. It stands for DT-FM-skip."""
    return Plan.of_slots(pipeline, random_paths(pipeline, rng), "backward first")


@planner("shortest")
def shortest(pipeline: Pipeline, rng: np.random.Generator) -> Plan:
    """Short round trips with no thought of who waits for whom; nodes work in the order of arrival.

    This is SkipPipe without its collision constraint TC2.
    """
    return Plan.of_slots(pipeline, short_paths(pipeline, rng), "fifo")


@planner("annealing")
def annealing(pipeline: Pipeline, rng: np.random.Generator) -> Plan:
    """`annealing_search` with a million moves, some ten seconds on one core for 30 microbatches."""
    return annealing_search(pipeline, rng, moves=1_000_000).plan


@planner("conflict-based")
def conflict_based(pipeline: Pipeline, rng: np.random.Generator) -> Plan:
    """The search of the released planner, stopped after 10,000 arrangements. Nothing is random."""
    return conflict_search(pipeline).plan


@planner("conflict-based without collisions")
def conflict_based_without_collisions(pipeline: Pipeline, rng: np.random.Generator) -> Plan:
    """The same without the collision constraint TC2: the first arrangement that fits the relays. Nothing is random."""
    return conflict_search(pipeline, collisions=False).plan


def planned(
    pipeline: Pipeline,
    how: Literal["annealing", "conflict-based"] = "annealing",
    seed: int = 0,
    start: Plan | None = None,
    recorded: str | File | None = None,
    **limits,
) -> SearchResult:
    """What `annealing_search` or `conflict_search` finds, from the record if it is there, as training runs are.

    limits: the search's own options. seed, start: of the annealing alone. A recorded plan is checked against the
    pipeline and replayed; its seconds of search are those of when it was found. Raises `PlanError` if a recorded plan
    does not take what its record says.
    """
    given = {"planner": how, "pipeline": pipeline.digest, "limits": limits, "version": VERSION[how]}
    if how == "annealing":
        given |= {"seed": seed, "start": start and key_of(_table(start).to_dict("list"))}

    def compute(_: list[dict]) -> Iterator[pd.DataFrame]:
        if how == "annealing":
            found = annealing_search(pipeline, np.random.default_rng(seed), start=start, **limits)
        else:
            found = conflict_search(pipeline, **limits)
        steps = pd.DataFrame(found.history, columns=["moves", "seconds", "makespan"])
        last = pd.DataFrame([(found.moves, found.seconds, found.makespan)], columns=steps.columns)
        parts = {"operation": _table(found.plan), "better": steps, found.ended: last}
        table = pd.concat([part.assign(what=what) for what, part in parts.items()], ignore_index=True)
        counts = {name: table[name].fillna(-1).astype("int64") for name in (*OPERATION, "moves")}
        yield table.assign(**counts)

    (table,) = computed([given], compute, recorded)
    line, steps = table[table["what"] == "operation"], table[table["what"] == "better"]
    *_, end = table.itertuples()
    plan = _plan_of(pipeline, line)
    takes = replay(pipeline, plan).makespan
    if takes != end.makespan:
        raise PlanError(
            f"the recorded plan takes {takes} s where its record says {end.makespan} s; delete the file "
            f"{key_of({'computed': given})}.parquet from {recorded or 'the runs/ of its paper'} and plan anew"
        )
    history = tuple(steps[["moves", "seconds", "makespan"]].itertuples(index=False, name=None))
    return SearchResult(plan, takes, history, end.moves, end.seconds, end.what)


def _table(plan: Plan) -> pd.DataFrame:
    """The operations of a plan with orders as a table, node by node, each node's in its order."""
    rows = [(node, *operation) for node, line in sorted(plan.order.items()) for operation in line]
    return pd.DataFrame(rows, columns=list(OPERATION))


def _plan_of(pipeline: Pipeline, line: pd.DataFrame) -> Plan:
    """The plan of a table that `_table` gave."""
    way, order = {}, {}
    for node, microbatch, position in line[list(OPERATION)].itertuples(index=False, name=None):
        order.setdefault(node, []).append((microbatch, position))
        way[microbatch, position] = node
    count = 1 + max((microbatch for microbatch, _ in way), default=-1)
    paths = [tuple(way.get((j, position), -1) for position in range(1, pipeline.visits)) for j in range(count)]
    return Plan(tuple(paths), {node: tuple(operations) for node, operations in order.items()})


def full_pipelines(
    pipeline: Pipeline, columns: Sequence[Sequence[int]] | None = None, microbatches: int | None = None
) -> tuple[Pipeline, Plan]:
    """The instance and plan without skipping (DT-FM): pipeline i goes through the i-th node of every stage, in order.

    Data nodes beyond the number of pipelines K idle. columns [K][S]: the nodes of each pipeline, the first a data node;
    by default the i-th of each group. microbatches: those of each pipeline; by default so many that none are lost,
    D * M / K rounded up.
    """
    K = min(len(group) for group in pipeline.groups)
    columns = [[group[i] for group in pipeline.groups] for i in range(K)] if columns is None else columns
    groups = tuple(tuple(column[s] for column in columns) for s in range(pipeline.stages))
    each = -(-pipeline.count // len(columns)) if microbatches is None else microbatches
    rules = PathRules(pipeline.stages, pipeline.rules.ahead, swaps=0)
    whole = replace(pipeline, groups=groups, rules=rules, microbatches=each, relay_limit=None)
    return whole, Plan.of_slots(whole, [tuple(column[1:]) for column in columns])
