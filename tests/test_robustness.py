"""Plans when durations vary, links change and relays die, against closed forms and the replay."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skippipe import instances

from swarmbook.errors import ConfigError, PlanError
from swarmbook.planning.annealing import annealing_search
from swarmbook.planning.path_rules import PathRules
from swarmbook.planning.pipeline import Pipeline, Plan
from swarmbook.planning.replay import replay
from swarmbook.planning.robustness import Conditions, choose, compare, cost_of_caution, deaths, makespans

STILL = Conditions(jitter=0.0, links=1.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def chain(**fields) -> tuple[Pipeline, Plan]:
    """One microbatch through three nodes, hops of two seconds: 1 + 2 + 1 + 2 + 1 + 2, the loss, and back with 1.5."""
    fields = {"head": 0.0, "gap": 0.0, "launch_gap": 0.0} | fields
    pipeline = Pipeline(((0,), (1,), (2,)), np.full((3, 3), 2.0), 1.0, PathRules(3), 1, 1, **fields)
    return pipeline, planned(pipeline, ((1, 2),))


def planned(pipeline: Pipeline, paths) -> Plan:
    """Paths with the order that nodes come to by the longest rest."""
    plan = Plan(tuple(paths), "longest rest")
    return replace(plan, order=replay(pipeline, plan).order())


@given(instances(), st.integers(0, 3), st.booleans(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_where_nothing_varies_each_draw_is_the_replay(pipeline, seed, sharing, half):
    plan = annealing_search(pipeline, rng(seed), moves=50).plan
    occupied = 0.7 * pipeline.hops if sharing else None
    times = makespans(pipeline, plan, STILL, rng(), 3, occupied, half)
    assert times == pytest.approx(np.full(3, replay(pipeline, plan, None, occupied, half).makespan), abs=1e-5)
    slow = makespans(replace(pipeline, hops=2 * pipeline.hops), plan, STILL, rng(), 1)
    assert slow[0] == pytest.approx(replay(pipeline, plan, 2 * pipeline.hops).makespan, abs=1e-5)


def test_a_chain_takes_the_sum_of_its_delays():
    """Their means add up, and so do their variances: 3 passes of 1 s, 3 of 1.5 s, and 6 messages of 2 s."""
    pipeline, plan = chain()
    times = makespans(pipeline, plan, Conditions(jitter=0.3, links=1.0), rng(), 40_000)
    assert replay(pipeline, plan).makespan == pytest.approx(19.5)
    deviation = 0.3 * np.sqrt(3 * 1 + 3 * 1.5**2 + 6 * 4)
    assert times.mean() == pytest.approx(19.5, abs=4 * deviation / 200)
    assert times.std() == pytest.approx(deviation, rel=0.03)


def test_a_link_is_as_slow_in_both_directions_and_all_the_time():
    """Three links of a chain carry two messages each: 4 s times a factor from 1/2 to 2, evenly in its logarithm."""
    pipeline, plan = chain()
    times = makespans(pipeline, plan, Conditions(jitter=0.0, links=2.0), rng(), 40_000)
    assert times.min() >= 7.5 + 12 / 2 and times.max() <= 7.5 + 12 * 2
    mean, square = 1.5 / (2 * np.log(2)), (4 - 0.25) / (4 * np.log(2))
    deviation = 4 * np.sqrt(3 * (square - mean**2))
    assert times.mean() == pytest.approx(7.5 + 12 * mean, abs=4 * deviation / 200)
    assert times.std() == pytest.approx(deviation, rel=0.03)


def test_what_varies_belongs_to_operations_and_links_and_not_to_the_plan():
    pipeline, plan = chain(head=0.25)
    again = makespans(pipeline, plan, Conditions(), rng(7), 50)
    assert (makespans(pipeline, plan, Conditions(), rng(7), 50) == again).all()
    assert (makespans(pipeline, plan, Conditions(), rng(8), 50) != again).all()
    other = Pipeline(((0,), (1, 3), (2,)), np.full((4, 4), 2.0), 1.0, PathRules(3), 1, 1, 0.25, gap=0.0, launch_gap=0.0)
    assert (makespans(other, planned(other, ((1, 2),)), Conditions(), rng(7), 50) == again).all()
    jitter = Conditions(jitter=0.2, links=1.0)  # a node of the same speed on the way makes no difference to the passes
    assert (
        makespans(other, planned(other, ((3, 2),)), jitter, rng(7), 50) == makespans(pipeline, plan, jitter, rng(7), 50)
    ).all()


def test_a_dead_relay_loses_its_microbatches_or_another_takes_them():
    """Two microbatches over two relays of one stage, and one relay of another, which nobody can replace."""
    pipeline = Pipeline(
        ((0,), (1, 2), (3,)), np.full((4, 4), 2.0), [1, 3, 3, 1], PathRules(3), 2, 2, head=0.0, gap=0.0, launch_gap=0.0
    )
    plan = planned(pipeline, ((1, 3), (2, 3)))
    one, two, three = deaths(pipeline, plan)
    assert [death.relay for death in (one, two, three)] == [1, 2, 3]
    assert (one.lost, two.lost, three.lost) == (1, 1, 2)
    assert one.rest == two.rest == pytest.approx(24.5) and three.rest == 0.0  # one microbatch by itself, or none
    both = planned(pipeline, ((1, 3), (1, 3)))
    assert one.rerouted == two.rerouted == replay(pipeline, both).makespan > replay(pipeline, plan).makespan
    assert three.rerouted is None
    with pytest.raises(PlanError, match="order='fifo': give a plan with orders"):
        deaths(pipeline, Plan(plan.paths))


@given(instances())
@settings(max_examples=20, deadline=None)
def test_any_relay_may_die(pipeline):
    plan = annealing_search(pipeline, rng(), moves=100).plan
    found = deaths(pipeline, plan)
    assert sum(death.lost for death in found) == pipeline.count * (pipeline.visits - 1)
    for death in found:
        others = len(pipeline.groups[pipeline.stage_of[death.relay]]) > 1
        assert (death.rerouted is not None) == others and death.rest >= 0
        assert (death.rest == 0) == (death.lost == pipeline.count)


def test_plans_are_compared_on_the_same_draws_and_one_is_chosen():
    hops = np.full((4, 4), 2.0)
    hops[0, 2] = hops[2, 0] = 1.0
    pipeline = Pipeline(((0,), (1, 2), (3,)), hops, 1.0, PathRules(2), 1, 1, gap=0.0, launch_gap=0.0)
    plans = {
        "far": planned(pipeline, ((1,),)),
        "near": planned(pipeline, ((2,),)),
        "near too": planned(pipeline, ((2,),)),
    }
    table = compare(pipeline, plans, Conditions(), seed=3)
    assert table.loc["near"].drop("alone").equals(table.loc["near too"].drop("alone"))
    assert table.loc["far", "planned"] == pytest.approx(table.loc["near", "planned"] + 4.0)  # four hops
    assert (table["planned"] < table["95 %"]).all() and (table["mean"] < table["95 %"]).all()
    assert table["lost at worst"].tolist() == [1.0] * 3
    assert {choose(table, by) for by in ("planned", "mean", "95 %")} == {"near"}
    assert cost_of_caution(table, "far", "near") == pytest.approx(
        table.loc["far", "mean"] / table.loc["near", "mean"] - 1
    )
    with pytest.raises(ConfigError, match="by='worst' is no column of seconds to choose by: give one of planned, mean"):
        choose(table, "worst")


@pytest.mark.parametrize("fields", [{"jitter": -0.1}, {"jitter": np.nan}, {"links": 0.5}, {"links": np.inf}])
def test_conditions_that_make_no_sense_are_refused(fields):
    with pytest.raises(ConfigError, match=f"{next(iter(fields))}=.* is refused"):
        Conditions(**fields)


def test_the_worst_is_every_link_as_slow_as_it_may_be():
    pipeline, plan = chain()
    worst = Conditions(links=2.0).worst(pipeline)
    assert (worst.hops == 2 * pipeline.hops).all() and replay(worst, plan).makespan == pytest.approx(7.5 + 24)
