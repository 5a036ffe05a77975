"""`swarmbook plan`: what it reads, what it refuses, and whether what it writes is a plan of the swarm."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from swarmbook.cli import main
from swarmbook.errors import ConfigError
from swarmbook.planning.bounds import closed_form
from swarmbook.planning.path_rules import PathRules
from swarmbook.planning.pipeline import Pipeline, Plan
from swarmbook.planning.placement import group_sizes
from swarmbook.planning.replay import replay
from swarmbook.planning.swarm import dealt, group_counts, placed
from swarmbook.planning.swarm_file import read
from swarmbook.planning.swarm_plan import SwarmPlan, limits
from swarmbook.planning.swarm_search import plan_swarm

SWARMS = Path(__file__).parents[1] / "papers" / "skippipe" / "swarms"
WRONG = """\
message_mib: 32
visits: 3
duplx: full
stages:
  - {forward_s: 0.6, memory_gib: 6, activations_gib: 1.5}
  - {count: 3, forward_s: 0.5, memory_gib: 5, activations_gib: 1.5}
nodes:
  - {name: lyon, region: europe, speed: -1, memory_gib: 12}
  - {name: kyiv, region: europe, speed: .nan, memory_gib: 16}
  - {name: austin, region: america, memory_gib: 4}
  - {name: denver, region: america, memory_gib: 12}
  - {name: pune, region: asia, memory_gib: 12}
links:
  - {between: [europe, europe], latency_ms: 15, bandwidth_mbit_s: 900}
  - {between: [america, america], latency_ms: 40, bandwidth_mbit_s: 600}
  - {between: [europe, america], latency_ms: 95, bandwidth_mbit_s: 250}
  - {between: [europe, osia], latency_ms: 170, bandwidth_mbit_s: 150}
  - {between: [america, asia], latency_ms: 140, bandwidth_mbit_s: 180}
rules: {ahead: 1}
"""


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def swarm_of(folder: Path, **changes):
    """A swarm of three stages and six nodes in two places, with some keys changed."""
    stages = [{"count": 3, "forward_s": 1.0}]
    nodes = [{"name": f"n{i}", "region": "ab"[i % 2]} for i in range(6)]
    near, far = {"latency_ms": 0, "bandwidth_mbit_s": 8_000}, {"latency_ms": 500, "bandwidth_mbit_s": 80}
    links = [{"between": ["a", "a"], **near}, {"between": ["b", "b"], **near}, {"between": ["a", "b"], **far}]
    given = {"message_mib": 1.0, "stages": stages, "nodes": nodes, "links": links, "loss": 0.0, **changes}
    (folder / "swarm.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    return read(folder / "swarm.yaml")


def test_all_mistakes_are_told_at_once_with_line_value_and_remedy(tmp_path, capsys):
    (tmp_path / "wrong.yaml").write_text(WRONG)
    assert main(["plan", str(tmp_path / "wrong.yaml"), "--folder", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert re.findall(r"wrong\.yaml:(\d+): ", told) == ["3", "8", "9", "10", "13", "17", "19"]
    for part in (
        "7 mistakes",
        "unknown key 'duplx': did you mean 'duplex'?",
        "speed=-1: it should be greater than 0",
        "speed=nan: it should be a finite number",
        "memory_gib=4 of austin is too small for any stage: the smallest needs 6.5 with one microbatch; give it more",
        "no link between europe and asia: measure it and add, for example, `- {between: [europe, asia]",
        "unknown node or region 'osia': did you mean 'asia'?",
        "no feasible path visits stage 3: 2 steps of at most ahead=1 end at stage 2; raise ahead or visits",
    ):
        assert part in told
    assert not (tmp_path / "out").exists()  # nothing is made before the file is right


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages: [{forward_s: 1}, {forward_s: 1, forward_gflop: 3}]", r":2: a stage takes one of forward_s"),
        ("stages: [{forward_s: 1}]", r":2: 1 stages: give 2 to 1000"),
        ("stages: 3", r":2: stages=3 is refused: give a list"),
        ("nodes: []", r":3: nodes is missing: give a list"),
        ("nodes: [{name: a}]", r":3: 1 nodes for 2 stages"),
        ("nodes: [{name: a}, {name: 7}]", r":3: name=7: it should be a valid string"),
        ("nodes: [{name: a}, {name: b, stage: 2}]", r":3: stage=2 of b: give 0 to 1"),
        ("nodes: [{name: a}, {name: b, stage: 1, microbatches: 2}]", r":3: b at stage 1 sends none"),
        ("nodes: [{name: a}, {name: b, forward_s: [1]}]", r":3: forward_s of b has 1 numbers: give one for each of 2"),
        ("nodes:\n- {name: a}\n- {name: b}\n- {name: b}", r":6: node b is given twice, first in line 5"),
        ("nodes: no.csv", r":3: no.csv cannot be read: .*No such file"),
        (
            "links: [{between: [a], latency_ms: 1, bandwidth_mbit_s: 1}]",
            r":4: between=\['a'\]: List should have at least",
        ),
        ("links: {latency_ms: no.csv}", r":4: bandwidth_mbit_s=None: give the name of a CSV file"),
        ("visits: 3", r":5: visits=3: give 2 to 2"),
        ("visits: 2\nskip: 0.5", r":6: skip=0.5 and visits=2 say the same: give one of them"),
        ("message_mib: yes", r":1: message_mib='yes': it should be a valid number"),
        ("message_mib: 1\nmessage_mib: 2", r":2: message_mib is given twice, first in line 1"),
    ],
)
def test_a_mistake_in_any_part_is_told_with_its_line(tmp_path, change, message):
    parts = {
        "message_mib": "message_mib: 1",
        "stages": "stages: [{forward_s: 1}, {forward_s: 1}]",
        "nodes": "nodes: [{name: a}, {name: b}]",
        "links": "links: [{between: [a, b], latency_ms: 1, bandwidth_mbit_s: 1}]",
        "visits": "",
    }
    parts[change.split(":")[0]] = change
    (tmp_path / "s.yaml").write_text("\n".join(parts.values()))
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "s.yaml")


def test_mistakes_in_csv_files_are_told_with_their_own_lines(tmp_path):
    for file in SWARMS.glob("two_sites*"):
        (tmp_path / file.name).write_text(file.read_text())
    nodes, bandwidth = tmp_path / "two_sites_nodes.csv", tmp_path / "two_sites_bandwidth_mbit_s.csv"
    nodes.write_text(
        nodes.read_text().replace("basel-1,basel,1800", "basel-1,basel,fast").replace("gflop_s", "gflops", 1)
    )
    bandwidth.write_text(bandwidth.read_text().replace("700", "-700"))
    with pytest.raises(ConfigError) as error:
        read(tmp_path / "two_sites.yaml")
    told = str(error.value)
    assert "two_sites_nodes.csv:1: unknown key 'gflops': did you mean 'gflop_s'?" in told
    assert "two_sites_bandwidth_mbit_s.csv:3: bandwidth_mbit_s=-700: it should be greater than 0" in told
    assert "2 mistakes" in told  # the column once, and not what follows from it
    nodes.write_text(nodes.read_text().replace("gflops", "gflop_s", 1))
    with pytest.raises(ConfigError, match="two_sites_nodes.csv:5: gflop_s='fast': it should be a valid number"):
        read(tmp_path / "two_sites.yaml")


@pytest.mark.parametrize("text", ["a: [1", "", "- 1", "a: *b", "nodes: !!python/object:os.system {}"])
def test_what_is_no_swarm_is_refused_in_a_sentence(tmp_path, text):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError, match="s.yaml"):
        read(tmp_path / "s.yaml")
    with pytest.raises(ConfigError, match="cannot read .*missing.yaml: No such file"):
        read(tmp_path / "missing.yaml")


def test_numbers_mean_what_they_say(tmp_path):
    stages = [{"forward_gflop": 100, "memory_gib": 2, "activations_gib": 0.5}, {"forward_s": 2.0, "backward_s": 5.0}]
    nodes = [{"name": "a", "gflop_s": 50, "memory_gib": 4}, {"name": "b", "gflop_s": 10, "speed": 2.0, "holds": 1}]
    nodes.append({"name": "c", "forward_s": [7, 8], "backward_s": [9, 10], "memory_gib": 1.9})
    links = [{"between": ["a", "b"], "latency_ms": 100, "bandwidth_mbit_s": 8}]
    links += [{"between": ["a", "c"], "latency_ms": 1, "bandwidth_mbit_s": 8, "one_way": True}]
    links += [{"between": ["c", "a"], "latency_ms": 2, "bandwidth_mbit_s": 16, "one_way": True}]
    links += [{"between": ["b", "c"], "latency_ms": 3, "bandwidth_mbit_s": 8}]
    swarm = swarm_of(tmp_path, stages=stages, nodes=nodes, links=links, backward=3.0)
    a, b, c = swarm.nodes
    assert (a.forward, a.backward, a.holds) == ((2.0, 2.0), (6.0, 5.0), (4, 3))
    assert (b.forward, b.backward, b.holds) == ((10.0, 1.0), (30.0, 2.5), (1, 1))
    assert (c.forward, c.backward, c.holds[0]) == ((7, 8), (9, 10), 0)
    mib = 2**20 / 1e6
    assert swarm.hops[0, 1] == swarm.hops[1, 0] == pytest.approx(0.1 + mib)
    assert swarm.hops[0, 2] == pytest.approx(0.001 + mib) and swarm.hops[2, 0] == pytest.approx(0.002 + mib / 2)


def test_nodes_go_before_regions_in_what_is_said_of_links(tmp_path):
    special = {"between": ["n0", "n2"], "latency_ms": 7, "bandwidth_mbit_s": 8}
    one = {"between": ["n0", "b"], "latency_ms": 9, "bandwidth_mbit_s": 8}
    swarm = swarm_of(tmp_path)
    links = yaml.safe_load((tmp_path / "swarm.yaml").read_text())["links"]
    other = swarm_of(tmp_path, links=[special, one, *links])
    assert (swarm.latency[0, 2], other.latency[0, 2], other.latency[2, 0]) == (0.0, 0.007, 0.007)
    assert other.latency[0, 1] == other.latency[1, 0] == 0.009 and other.latency[2, 1] == swarm.latency[2, 1] == 0.5
    with pytest.raises(ConfigError, match=r":34: the link of b and a is given twice, first in line 29"):
        swarm_of(tmp_path, links=[*links, {"between": ["b", "a"], "latency_ms": 1, "bandwidth_mbit_s": 8}])


@pytest.mark.parametrize(("nodes", "stages", "visits"), [(20, 6, 4), (18, 4, 3), (42, 8, 6)])
def test_equal_nodes_are_dealt_as_the_paper_deals_them(tmp_path, nodes, stages, visits):
    swarm = swarm_of(
        tmp_path,
        nodes=[{"name": f"n{i}", "region": "ab"[i % 2]} for i in range(nodes)],
        stages={"count": stages, "forward_s": 1.0},
        visits=visits,
    )
    counts = group_counts(swarm)
    assert tuple(counts) == group_sizes(nodes, stages, visits)
    groups = np.split(np.arange(nodes), np.cumsum(counts)[:-1])
    ours = swarm.pipeline(groups)
    paper = replace(ours, memory=3, microbatches=6, relay_limit=None)
    assert [int(ours.places[n]) for g in groups[1:] for n in g] == [paper.capacity] * (nodes - counts[0])


def test_nodes_serve_stages_that_their_memory_holds_and_that_they_are_given(tmp_path):
    stages = [{"forward_s": 1.0, "memory_gib": m, "activations_gib": 1} for m in (1, 9, 4)]
    nodes = [{"name": f"n{i}", "region": "ab"[i % 2], "memory_gib": m} for i, m in enumerate((2, 12, 6, 12, 3, 6))]
    nodes[1]["stage"] = 2
    swarm = swarm_of(tmp_path, stages=stages, nodes=nodes, sources=2)
    groups = placed(swarm, rng(), closed_form)
    assert sorted(n for group in groups for n in group) == list(range(6)) and 1 in groups[2]
    assert all(swarm.nodes[n].holds[s] > 0 for s, group in enumerate(groups) for n in group)
    pipeline = swarm.pipeline(groups)
    assert groups[1] == [3] and pipeline.room[3] == 3  # no other node can hold stage 1
    nodes[3]["memory_gib"] = 6
    with pytest.raises(ConfigError, match=r":\d+: no node can hold stage 1 and a microbatch: make it smaller"):
        swarm_of(tmp_path, stages=stages, nodes=nodes)
    for node in nodes:
        node["memory_gib"] = 3 if node["name"] != "n3" else 12
    nodes[1].pop("stage")
    with pytest.raises(ConfigError, match="memory is too small for any placement: stages of .* find no nodes"):
        placed(swarm_of(tmp_path, stages=stages, nodes=nodes), rng(), closed_form)


def test_messages_follow_one_another_on_their_link():
    """Two microbatches leave at 1 and 2 over a hop of 3 that they occupy for 2; the reply of the first comes across."""
    hops, occupied = np.full((2, 2), 3.0), np.full((2, 2), 2.0)
    pipeline = Pipeline(((0,), (1,)), hops, 1.0, PathRules(2), 2, 2, head=0.0, gap=0.0, launch_gap=0.0)
    plan = Plan(((1,), (1,)))
    free = replay(pipeline, plan).tasks
    assert free[free["position"] == 1]["ready"].tolist() == [4.0, 5.0]
    full = replay(pipeline, plan, None, occupied).tasks
    assert full[full["position"] == 1]["ready"].tolist() == [4.0, 6.0]
    assert full[full["position"] == 2]["ready"].tolist() == [8.0, 10.0]
    slow = np.full((2, 2), 5.0)
    full, half = (replay(pipeline, plan, slow, slow, alike).tasks for alike in (False, True))
    assert full[full["position"] == 1]["ready"].tolist() == half[half["position"] == 1]["ready"].tolist() == [6.0, 11.0]
    # the first is done at 7; its reply waits for the second message, which has the way until 11, unless it has its own
    assert full[full["position"] == 2]["ready"].tolist()[0] == 12.0
    assert half[half["position"] == 2]["ready"].tolist()[0] == 16.0


@pytest.mark.parametrize("name", ["volunteers", "two_sites"])
def test_the_command_writes_a_plan_of_the_swarm(tmp_path, capsys, name):
    argv = ["plan", str(SWARMS / f"{name}.yaml"), "--moves", "3000", "--seed", "1", "--robust"]
    for folder in ("one", "two"):
        assert main([*argv, "--folder", str(tmp_path / folder)]) == 0
    told = capsys.readouterr().out
    assert "lower bound" in told and "so most limiting" in told and "on average" in told
    for file in ("plan.json", "visits.csv", "schedule.svg"):
        assert (tmp_path / "one" / file).read_bytes() == (
            tmp_path / "two" / file
        ).read_bytes()  # nothing is by the clock
    plan = json.loads((tmp_path / "one" / "plan.json").read_text())
    visits = pd.read_csv(tmp_path / "one" / "visits.csv")
    swarm = read(SWARMS / f"{name}.yaml")
    number = {node.name: n for n, node in enumerate(swarm.nodes)}
    stage = {name: s for s, group in enumerate(plan["stages"]) for name in group}
    assert visits["end_s"].max() == plan["seconds_an_iteration"] >= plan["lower_bound_s"]
    assert all(visits["stage"] == visits["node"].map(stage))
    for node, part in visits.sort_values("start_s").groupby("node"):
        assert (part["start_s"].to_numpy()[1:] >= part["end_s"].to_numpy()[:-1] - 1e-6).all()
        held = (part["direction"] == "forward").cumsum() - (part["direction"] == "backward").cumsum()
        assert held.max() <= plan["microbatches_in_memory"][node]
    for path in plan["paths"]:
        line = visits[visits["microbatch"] == path["microbatch"]].sort_values("start_s")
        way = [path["source"], *path["relays"], path["source"], *reversed(path["relays"]), path["source"]]
        assert line["node"].tolist() == way and len(set(path["stages"])) == swarm.visits - 1
        for (a, end), (b, start) in zip(
            zip(line["node"], line["end_s"], strict=True),
            zip(line["node"][1:], line["start_s"][1:], strict=True),
            strict=False,
        ):
            assert start >= end + swarm.hops[number[a], number[b]] - 1e-5
    sent = pd.Series([path["source"] for path in plan["paths"]]).value_counts()
    assert {n.name: n.microbatches for n in swarm.nodes if n.microbatches}.items() <= sent.to_dict().items()
    parts = plan["limits"]
    whole = parts["computing_s"] + parts["sending_s"] + parts["waiting_for_links_s"]
    assert whole == pytest.approx(plan["seconds_an_iteration"], abs=1e-4)
    assert set(plan["robustness"]) == {"planned", "planned anew", "for the worst"}
    assert (tmp_path / "one" / "schedule.svg").read_text().count("<path") > len(visits)


def test_what_limits_a_chain_is_what_it_is_made_of(tmp_path):
    """One microbatch over three nodes: 3 forward and 3 backward passes of twice that, and 4 messages."""
    nodes = [{"name": f"n{i}", "region": "ab"[i % 2], "stage": i} for i in range(3)]
    swarm = swarm_of(tmp_path, nodes=nodes, microbatches=1)
    groups = placed(swarm, rng(), closed_form)
    assert groups == [[0], [1], [2]]
    pipeline = swarm.pipeline(groups)
    plan = Plan(((1, 2),))
    done = replay(pipeline, plan, **swarm.line)
    found = SwarmPlan(swarm, pipeline, Plan(plan.paths, done.order()), done, float(closed_form(pipeline).max()))
    told = limits(found)
    far, near = 0.5 + 2**20 / 1e7, 2**20 / 1e9
    assert told.computing == pytest.approx(9.0) and told.queueing == 0.0 and told.slots == 0
    assert told.nodes == pytest.approx({"n0": 3.0, "n1": 3.0, "n2": 3.0})
    assert told.links == pytest.approx({"n0 - n1": 2 * far, "n1 - n2": 2 * far, "n0 - n2": 2 * near}, abs=1e-5)
    assert told.instead["links twice as fast"] == pytest.approx(9.0 + told.sending / 2, abs=1e-5)
    assert told.instead["nodes twice as fast"] == pytest.approx(4.5 + told.sending, abs=1e-5)
    assert told.most == "nodes twice as fast" and done.makespan == pytest.approx(found.bound)


def test_without_paths_the_plan_is_refused_with_the_remedy(tmp_path):
    nodes = [{"name": f"n{i}", "region": "ab"[i % 2], "stage": min(i, 2)} for i in range(3)]
    swarm = replace(swarm_of(tmp_path, nodes=nodes, visits=2), ahead=1)
    with pytest.raises(
        ConfigError, match="no plan for swarm: no paths of 2 stages .*: give the relay stages more nodes"
    ):
        plan_swarm(swarm, moves=10)


def test_short_paths_alone_are_the_plan_without_tc2(tmp_path):
    swarm = swarm_of(tmp_path, rules={"TC2": False}, visits=2)
    found = plan_swarm(swarm, moves=100)
    assert replay(found.pipeline, found.plan, **swarm.line).makespan == found.done.makespan


@pytest.mark.parametrize("clusters", [1, 2])
def test_large_swarms_are_dealt_in_clusters(tmp_path, clusters):
    """Two sites far apart: with two clusters each has its own pipeline; memory and given stages are kept."""
    nodes = [{"name": f"n{i}", "region": "ab"[i % 2]} for i in range(6)]
    nodes[0] |= {"memory_gib": 1.0}  # too little for stage 0
    nodes[1] |= {"stage": 2}
    stages = [{"forward_s": 1.0, "memory_gib": 2}, {"count": 2, "forward_s": 1.0, "memory_gib": 1}]
    swarm = swarm_of(tmp_path, nodes=nodes, stages=stages)
    groups = dealt(swarm, clusters, rng())
    assert [len(group) for group in groups] == group_counts(swarm) == [2, 2, 2]
    assert sorted(sum(groups, [])) == list(range(6)) and 0 not in groups[0] and 1 in groups[2]
    if clusters == 2:
        assert [sorted(n % 2 for n in group) for group in groups] == [[0, 1]] * 3
        assert closed_form(swarm.pipeline(groups)).max() < 20.5  # 2 x 9 s + 2 launches: no message of 0.6 s
