"""One look for all figures: colour-blind safe, bands over seeds, the paper's values as open markers or dashed lines."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from swarmbook.analysis.confidence import Estimate, estimate

WIDTH = 9.5  # inches, the width of a notebook page


def style() -> None:
    """Set the look of all following figures."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.85)
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.bbox": "tight",
            "axes.grid": True,
            "grid.alpha": 0.35,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
        }
    )


def panels(
    count: int, ratios: Sequence[float] | None = None, height: float = 3.6, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of page width with panels side by side."""
    size = (WIDTH, height)
    figure, axes = plt.subplots(1, count, figsize=size, width_ratios=ratios, sharey=sharey, squeeze=False)
    return figure, list(axes[0])


def curves(table: pd.DataFrame, hue: str, order: Sequence, labels: Sequence[str], ax: Axes, **kwargs) -> None:
    """Mean over seeds against step, with a band from the lowest to the highest seed; one line a value of `hue`."""
    names = dict(zip(order, labels, strict=True))
    named = table[table[hue].isin(order)].assign(**{hue: table[hue].map(names)})
    sns.lineplot(named, x="step", y="value", hue=hue, hue_order=labels, errorbar=("pi", 100), ax=ax, **kwargs)
    ax.legend(title=None)
    ax.set_xlabel("training step")


def gaps(table: pd.DataFrame, axis: str, order: Sequence, baseline: object, ax: Axes, **kwargs) -> None:
    """Value at each `axis` of `order` minus that at `baseline`, seed by seed: mean and 95 % interval over steps."""
    wide = table.pivot(index=["step", "seed"], columns=axis, values="value")
    for value in order:
        differences = (wide[value] - wide[baseline]).dropna().groupby("step")
        estimates = pd.DataFrame([vars(estimate(part)) for _, part in differences], index=list(differences.groups))
        (line,) = ax.plot(estimates.index, estimates["mean"], **kwargs)
        low, high = estimates["mean"] - estimates["half"], estimates["mean"] + estimates["half"]
        ax.fill_between(estimates.index, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.axhline(0, color="0.3", linewidth=0.8)
    ax.set_xlabel("training step")


def dots(table: pd.DataFrame, x: str, order: Sequence, ax: Axes, shift: float = 0.0, **kwargs) -> None:
    """Every seed as a small dot and their mean as a marker, at each value of `x`, at positions 0, 1, 2, ..."""
    style = {"marker": "o", "markersize": 6, "linestyle": "none", **kwargs}
    places = {value: i + shift for i, value in enumerate(order)}
    part = table[table[x].isin(order)]
    ax.plot(part[x].map(places), part["value"], ".", color=style.get("color"), alpha=0.45, markersize=4)
    means = part.groupby(x)["value"].mean()
    ax.plot(means.index.map(places), means, **style)
    ax.set_xticks(range(len(order)), [str(value) for value in order])


def intervals(table: pd.DataFrame, x: str, order: Sequence, ax: Axes, shift: float = 0.0, **kwargs) -> None:
    """Mean over seeds with its 95 % confidence interval at each value of `x`, at positions 0, 1, 2, ..."""
    there = set(table[x])
    estimates = {i: estimate(table[table[x] == value]["value"]) for i, value in enumerate(order) if value in there}
    ax.errorbar(
        [i + shift for i in estimates],
        [e.mean for e in estimates.values()],
        [e.half if e.n > 1 else 0.0 for e in estimates.values()],
        **{"marker": "o", "markersize": 5, "capsize": 2.5, "linestyle": "none", **kwargs},
    )
    ax.set_xticks(range(len(order)), [str(value) for value in order])


def forest(estimates: Mapping[str, Estimate], ax: Axes, **kwargs) -> None:
    """Estimates below one another, the first on top: mean and 95 % interval, and a line at 0."""
    style = {"marker": "o", "markersize": 6, "capsize": 3, "linestyle": "none", **kwargs}
    values = list(estimates.values())
    ax.errorbar(
        [e.mean for e in values], range(len(values)), xerr=[e.half if e.n > 1 else 0.0 for e in values], **style
    )
    ax.axvline(0, color="0.3", linewidth=0.8)
    ax.set_yticks(range(len(values)), list(estimates))
    ax.set_ylim(len(values) - 0.5, -0.5)


def legend_below(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    """One legend for all panels, below them: the entries of the first panel that has the most."""
    for ax in axes:
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    fullest = max(axes, key=lambda ax: len(ax.get_legend_handles_labels()[1]))
    figure.legend(*fullest.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def band(ax: Axes, table: pd.DataFrame, **kwargs) -> None:
    """A measurement [step or other index, seed]: mean over seeds with a band for its 95 % interval."""
    estimates = table.apply(estimate, axis=1)
    (line,) = ax.plot(estimates.index, [e.mean for e in estimates], **kwargs)
    low, high = [e.low for e in estimates], [e.high for e in estimates]
    ax.fill_between(estimates.index, low, high, color=line.get_color(), alpha=0.12, linewidth=0)


def plain(axis: Axis, ticks: Sequence[float]) -> None:
    """Plain numbers on a logarithmic axis, those of `ticks` that fall into what it shows."""
    low, high = axis.get_view_interval()
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(shown, [f"{tick:g}" for tick in shown])
    axis.set_ticks([], minor=True)


def zoom(ax: Axes, values: Sequence[float], room: float) -> None:
    """Show loss curves from just below their lowest value up to `room` above it; the start of training is far above."""
    ax.set_ylim(min(values) - 0.06 * room, min(values) + room)


def timeline(tasks: pd.DataFrame, colours: Mapping[str, str], ax: Axes) -> None:
    """Tasks (node, kind, start, end in seconds) as bars, one row a node, the first on top; one colour a kind."""
    for kind, colour in colours.items():
        part = tasks[(tasks["kind"] == kind) & (tasks["end"] > tasks["start"])]
        ax.barh(
            part["node"],
            part["end"] - part["start"],
            left=part["start"],
            color=colour,
            height=0.8,
            linewidth=0,
            label=kind,
        )
    ax.invert_yaxis()
    ax.set_xlabel("seconds")


def gantt(tasks: pd.DataFrame, groups: Sequence[Sequence[int]], ax: Axes) -> None:
    """A replay's tasks (node, microbatch, kind, start, end in seconds): one row a node, stages below one another.

    One colour a microbatch, which is numbered from 1 in its bars; forward passes pale, backward passes framed.
    """
    rows = {node: row for row, node in enumerate(node for group in groups for node in group)}
    colours = sns.color_palette("husl", int(tasks["microbatch"].max()) + 1)
    for task in tasks.itertuples():
        back = task.kind == "backward"
        where, size = rows[task.node], task.end - task.start
        edge = {"edgecolor": "0.15", "linewidth": 0.9} if back else {"edgecolor": "white", "linewidth": 0.5}
        ax.barh(
            where, size, left=task.start, height=0.82, color=colours[task.microbatch], alpha=1 if back else 0.6, **edge
        )
        if task.kind != "loss":
            ax.text(task.start + size / 2, where, task.microbatch + 1, ha="center", va="center", fontsize=7)
    first = 0
    for group in groups[:-1]:
        first += len(group)
        ax.axhline(first - 0.5, color="0.3", linewidth=0.8)
    names = [
        f"{node} (stage {s})" if not i else str(node) for s, group in enumerate(groups) for i, node in enumerate(group)
    ]
    ax.set_yticks(range(len(rows)), names, fontsize=7)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(False)
    ax.set_xlabel("seconds")
