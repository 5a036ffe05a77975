"""One look for all figures: colours that the colour-blind can tell apart, and bands or intervals over seeds.

Most functions draw into given matplotlib axes and pass further keywords on to matplotlib or seaborn.

Serves: the figures of all five notebooks.
"""

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
    """A figure of the width of a page with panels side by side; ratios: their widths; height: in inches."""
    size = (WIDTH, height)
    figure, axes = plt.subplots(1, count, figsize=size, width_ratios=ratios, sharey=sharey, squeeze=False)
    return figure, list(axes[0])


def curves(table: pd.DataFrame, hue: str, order: Sequence, labels: Sequence[str], ax: Axes, **kwargs) -> None:
    """Lines of the mean over seeds against the step, with a band from the lowest to the highest seed.

    table: with columns step, value, seed and `hue`. Each value of `hue` in `order` has a line; `labels` name them.
    """
    names = dict(zip(order, labels, strict=True))
    named = table[table[hue].isin(order)].assign(**{hue: table[hue].map(names)})
    sns.lineplot(named, x="step", y="value", hue=hue, hue_order=labels, errorbar=("pi", 100), ax=ax, **kwargs)
    ax.legend(title=None)
    ax.set_xlabel("training step")


def gaps(table: pd.DataFrame, axis: str, order: Sequence, baseline: object, ax: Axes, **kwargs) -> None:
    """Lines of the difference to a baseline against the step, seed by seed: mean and 95 % interval.

    table: with columns step, seed, value and `axis`. Each value of `axis` in `order` has a line; `baseline` is another.
    """
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
    """Every seed as a small dot and the mean as a marker; the values of column `x` in `order` lie at 0, 1, 2, ..."""
    style = {"marker": "o", "markersize": 6, "linestyle": "none", **kwargs}
    places = {value: i + shift for i, value in enumerate(order)}
    part = table[table[x].isin(order)]
    ax.plot(part[x].map(places), part["value"], ".", color=style.get("color"), alpha=0.45, markersize=4)
    means = part.groupby(x)["value"].mean()
    ax.plot(means.index.map(places), means, **style)
    ax.set_xticks(range(len(order)), [str(value) for value in order])


def intervals(table: pd.DataFrame, x: str, order: Sequence, ax: Axes, shift: float = 0.0, **kwargs) -> None:
    """The mean over seeds with its 95 % interval; the values of column `x` in `order` lie at 0, 1, 2, ..."""
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
    """Estimates below one another, the first on top, each a mean with its 95 % interval; and a line at 0."""
    style = {"marker": "o", "markersize": 6, "capsize": 3, "linestyle": "none", **kwargs}
    values = list(estimates.values())
    ax.errorbar(
        [e.mean for e in values], range(len(values)), xerr=[e.half if e.n > 1 else 0.0 for e in values], **style
    )
    ax.axvline(0, color="0.3", linewidth=0.8)
    ax.set_yticks(range(len(values)), list(estimates))
    ax.set_ylim(len(values) - 0.5, -0.5)


def legend_below(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    """One legend for all panels, below them, with the entries of the panel that has the most."""
    for ax in axes:
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    fullest = max(axes, key=lambda ax: len(ax.get_legend_handles_labels()[1]))
    figure.legend(*fullest.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def band(ax: Axes, table: pd.DataFrame, **kwargs) -> None:
    """A line of the mean over seeds with a band for its 95 % interval; table: [step or other index, seed]."""
    estimates = table.apply(estimate, axis=1)
    (line,) = ax.plot(estimates.index, [e.mean for e in estimates], **kwargs)
    low, high = [e.low for e in estimates], [e.high for e in estimates]
    ax.fill_between(estimates.index, low, high, color=line.get_color(), alpha=0.12, linewidth=0)


def plain(axis: Axis, ticks: Sequence[float]) -> None:
    """Label a logarithmic axis with plain numbers: those of `ticks` that lie in the range that it shows."""
    low, high = axis.get_view_interval()
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(shown, [f"{tick:g}" for tick in shown])
    axis.set_ticks([], minor=True)


def zoom(ax: Axes, values: Sequence[float], room: float) -> None:
    """Show loss curves from just below their lowest value up to `room` above it, without the start of training."""
    ax.set_ylim(min(values) - 0.06 * room, min(values) + room)


def timeline(tasks: pd.DataFrame, colours: Mapping[str, str], ax: Axes) -> None:
    """Tasks as bars, one row a node, the first on top, one colour a kind.

    tasks: with columns node, kind, start and end, both in seconds. colours: by kind.
    """
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
    """The tasks of a schedule as bars, one row a node, one colour a microbatch.

    tasks: with columns node, microbatch, kind, start and end, both in seconds. groups: the nodes of each stage, the
    first stage on top. Bars bear the microbatch, from 1. Forward passes are pale and backward passes framed.
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
