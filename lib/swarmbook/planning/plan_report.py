"""What is written and told of a swarm's plan: JSON, a CSV of visits, the schedule as SVG, and a table of facts.

Microbatches are numbered from 1 in all of them, in the order of the sources.

Serves: `swarmbook plan`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from swarmbook.planning.robustness import cost_of_caution
from swarmbook.planning.swarm_plan import USUAL, WORST, Limits, SwarmPlan
from swarmbook.records import atomic_files

if TYPE_CHECKING:  # it takes a second to load, and is loaded where it is needed
    from matplotlib.figure import Figure

ROW, MOST_ROWS = 0.24, 150  # inches of a node's row in the schedule, and rows that have so much
MOST_NUMBERED = 80  # microbatches whose visits bear numbers
SHOWN = 3  # nodes and links on the critical path that are told


def visits(found: SwarmPlan) -> pd.DataFrame:
    """A row for every operation by start: microbatch, node, stage, direction, and start and end in seconds."""
    tasks = found.done.tasks
    names = [node.name for node in found.swarm.nodes]
    return pd.DataFrame(
        {
            "microbatch": tasks["microbatch"] + 1,
            "node": [names[node] for node in tasks["node"]],
            "stage": tasks["stage"],
            "direction": tasks["kind"],
            "start_s": tasks["start"].round(6),
            "end_s": tasks["end"].round(6),
        }
    )


def as_json(found: SwarmPlan, limits: Limits) -> dict[str, Any]:
    """The plan and all that was found out about it."""
    swarm, pipeline, plan = found.swarm, found.pipeline, found.plan
    names = [node.name for node in swarm.nodes]
    return {
        "swarm": swarm.name,
        "seconds_an_iteration": round(found.done.makespan, 6),
        "lower_bound_s": round(found.bound, 6),
        "stages": [[names[node] for node in group] for group in pipeline.groups],
        "microbatches_in_memory": {names[node]: int(pipeline.room[node]) for node in sorted(pipeline.stage_of)},
        "paths": [
            {
                "microbatch": j + 1,
                "source": names[pipeline.data_node(j)],
                "relays": [names[node] for node in path],
                "stages": [pipeline.stage_of[node] for node in path],
            }
            for j, path in enumerate(plan.paths)
        ],
        "order": {names[node]: [[j + 1, k] for j, k in line] for node, line in sorted(plan.order.items())},
        "limits": {
            "computing_s": round(limits.computing, 6),
            "sending_s": round(limits.sending, 6),
            "waiting_for_links_s": round(limits.queueing, 6),
            "nodes_s": {name: round(seconds, 6) for name, seconds in limits.nodes.items()},
            "links_s": {name: round(seconds, 6) for name, seconds in limits.links.items()},
            "busy": {name: round(float(share), 4) for name, share in zip(names, limits.busy, strict=True)},
            "instead_s": {name: s and round(s, 6) for name, s in limits.instead.items()},
        },
        "robustness": None if found.table is None else json.loads(found.table.to_json(orient="index")),
    }


def facts(found: SwarmPlan, limits: Limits) -> list[tuple[str, str]]:
    """What is told in the terminal, as names and values."""
    swarm, pipeline, whole = found.swarm, found.pipeline, found.done.makespan
    rows = [
        (
            "an iteration",
            f"{whole:.4g} s for {pipeline.count} microbatches, {pipeline.visits} of {pipeline.stages} stages each",
        ),
        ("lower bound", f"{found.bound:.4g} s for this placement; plan / bound = {whole / found.bound:.3f}"),
    ]
    for stage, group in enumerate(pipeline.groups):
        names = [swarm.nodes[node].name for node in group]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        if stage < 12:
            rows.append((f"stage {stage}" + " (sources)" * (not stage), ", ".join(names[:8]) + more))
    parts = {"computing": limits.computing, "messages": limits.sending, "waiting for a link": limits.queueing}
    rows.append(("critical path", ", ".join(f"{100 * s / whole:.0f} % {name}" for name, s in parts.items())))
    rows.append(("nodes on it", _largest(limits.nodes, whole)))
    rows.append(("links on it", _largest(limits.links, whole) or "none"))
    busiest = int(np.argmax(limits.busy))
    at_work = limits.busy[sorted(pipeline.stage_of)]
    rows.append(
        (
            "nodes at work",
            f"{100 * at_work.mean():.0f} % of the time, most {swarm.nodes[busiest].name} {100 * at_work.max():.0f} %",
        )
    )
    for name, seconds in limits.instead.items():
        rows.append(
            (
                f"with {name}",
                f"{seconds:.4g} s, {100 * (1 - seconds / whole):.0f} % less"
                if seconds
                else "none found that is shorter",
            )
        )
    rows.append(("so most limiting", {"l": "links", "n": "nodes", "r": "memory"}[limits.most[0]]))
    return rows


def caution(found: SwarmPlan) -> str:
    """What is told of a plan for links that all are as slow as they may be."""
    more = 100 * cost_of_caution(found.table, WORST, USUAL)
    return f"planning for the slowest links takes {abs(more):.1f} % {'more' if more > 0 else 'less'} on average"


def robust_rows(found: SwarmPlan) -> list[dict[str, str]]:
    """What is told of the candidates under changing conditions."""
    rows = []
    for name, row in found.table.iterrows():
        taken = "none other" if np.isnan(row["re-routed at worst"]) else f"{row['re-routed at worst']:.4g}"
        rows.append(
            {
                "plan": f"{name}{' *' * (name == found.name)}",
                **{column: f"{row[column]:.4g}" for column in ("planned", "mean", "95 %")},
                "lost with a relay": f"{100 * row['lost at worst']:.0f} %",
                "if others take them": taken,
            }
        )
    return rows


def schedule(found: SwarmPlan) -> "Figure":
    """The plan as a picture: above what each node does when, below which stages each microbatch visits and skips."""
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    from swarmbook.analysis import figures

    figures.style()
    swarm, pipeline = found.swarm, found.pipeline
    rows, count = len(pipeline.stage_of), pipeline.count
    heights = [ROW * min(rows, MOST_ROWS) + 0.6, ROW * pipeline.stages + 0.6]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(12, sum(heights) + 1.2), height_ratios=heights, layout="constrained"
    )
    region = {n: f"{node.name}, {node.region}" if node.region else node.name for n, node in enumerate(swarm.nodes)}
    figures.gantt(found.done.tasks, pipeline.groups, above, region)
    above.axvline(found.done.makespan, color="0.3", lw=0.8)
    above.axvline(found.bound, color="0.3", lw=0.8, ls="--")
    above.set_xlim(0, 1.01 * found.done.makespan)
    told = f"{found.done.makespan:.4g} s an iteration, {count} microbatches"
    above.set_title(f"{swarm.name}: {told}; no plan of this placement takes less than {found.bound:.4g} s (dashed)")
    looks = {"forward": {"alpha": 0.6, "edgecolor": "white"}, "backward": {"edgecolor": "0.15"}}
    handles = [Patch(facecolor="C0", label=f"{kind} pass of microbatch n", **look) for kind, look in looks.items()]
    handles.append(Patch(facecolor="C0", alpha=0.6, edgecolor="white", label="loss (no number)"))
    handles.append(Patch(facecolor="0.92", edgecolor="0.6", hatch="////", label="stage skipped (below)"))
    _paths(found, below)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def _paths(found: SwarmPlan, ax: Any) -> None:
    """Which stages each microbatch visits, and as which; those that it skips are hatched."""
    import seaborn as sns

    from swarmbook.analysis import figures

    pipeline = found.pipeline
    S, count = pipeline.stages, pipeline.count
    colours = sns.color_palette("husl", count)
    numbered = count <= MOST_NUMBERED
    order = np.zeros((count, S), dtype=int)  # 0 stands for skipped
    for j, path in enumerate(found.plan.paths):
        order[j, [0, *(pipeline.stage_of[node] for node in path)]] = np.arange(1, pipeline.visits + 1)
    cells = {"height": 0.86, "width": 0.92, "linewidth": 0}
    j, s = np.nonzero(order)
    figures.bars(ax, s, j + 0.54, color=[(*colours[m], 0.75) for m in j], **cells)
    for m, stage in zip(j, s, strict=True) if numbered else ():
        ax.text(m + 1, stage, order[m, stage], ha="center", va="center", fontsize=7)
    j, s = np.nonzero(order == 0)
    figures.bars(ax, s, j + 0.54, color="0.92", edgecolor="0.6", hatch="////" if numbered else None, **cells)
    ax.set_yticks(range(S), [f"stage {s}" for s in range(S)], fontsize=7)
    ax.set_ylim(S - 0.5, -0.5)
    ax.set_xlim(0.5, count + 0.5)
    ax.grid(False)
    ax.set_xlabel("microbatch; numbers say in which order it visits the stages")


def write(found: SwarmPlan, limits: Limits, folder: Path) -> list[Path]:
    """Write plan.json, visits.csv and schedule.svg into a folder that is there; they are there whole or not at all."""
    from io import StringIO

    from matplotlib import pyplot as plt

    picture = StringIO()
    with plt.rc_context():
        figure = schedule(found)
        plt.rcParams["svg.hashsalt"] = "swarmbook"  # the same plan gives the same file
        figure.savefig(picture, format="svg", metadata={"Date": None})
    plt.close(figure)
    files = {
        "plan.json": json.dumps(as_json(found, limits), indent=1) + "\n",
        "visits.csv": visits(found).to_csv(index=False),
        "schedule.svg": picture.getvalue(),
    }
    for name, text in files.items():
        atomic_files.write(folder / name, text.encode())
    return [folder / name for name in files]


def _largest(seconds: dict[str, float], whole: float) -> str:
    return ", ".join(f"{name} {100 * s / whole:.0f} %" for name, s in _first(list(seconds.items())))


def _first(pairs: Sequence[tuple[str, float]]) -> Sequence[tuple[str, float]]:
    return pairs[:SHOWN]
