"""One look for all figures: colours that the colour-blind can tell apart, and bands or intervals over seeds.

- Most functions draw into given matplotlib axes and pass further keywords on to matplotlib.
- What a band or a bar means is an entry of the legend, and so is the paper's value, an open diamond.
- Legends stand below a figure. Where there are many lines or points, each bears its own name instead.

The file is long because it is one concept: what all figures have in common.

Serves: the figures of all five notebooks.
"""

import zlib
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path

from swarmbook.analysis import pictures
from swarmbook.analysis.confidence import Estimate, estimate

WIDTH = 9.5  # inches, the width of a notebook page
PAPER = {"marker": "D", "color": "C3", "fillstyle": "none", "linestyle": "none", "label": "paper"}
RANGE = "lowest to highest seed"
INTERVAL = "95 % interval over seeds"
MEAN = f"mean, {INTERVAL}"
BAR = "bar at the end: "
NAME = 8  # points, the size of a name beside a line or a point
OTHERS = ("#332288", "#117733", "#882255", "#999933", "#661100", "#6699CC")  # of Paul Tol's scheme "muted"
MOST_NAMED = 1_500  # bars of a schedule that bear the numbers of their microbatches; more are drawn as one collection
MOST_LABELS = 150  # rows of a schedule that all bear the names of their nodes
NAMED = "named beside"  # the gid of a line that bears its name
PALETTE = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc")  # seaborn's "colorblind"
PALETTE += ("#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9")


class Colours(dict):
    """Colours by the name of an arm. One that has none gets that of `colour_of`, so it may be added to any figure."""

    def __missing__(self, name: str) -> str:
        return colour_of(name)


def colour_of(name: str) -> str:
    """The colour of an arm that no figure knows: always the same for a name, and none of the usual palette's."""
    return OTHERS[zlib.crc32(name.encode()) % len(OTHERS)]


def style() -> None:
    """Set the look of all following figures, and how a notebook shows them."""
    plt.style.use("seaborn-v0_8-ticks")
    for axis in ("xtick", "ytick"):
        sizes = {"labelsize": 9.35, "major.width": 1.25, "minor.size": 4.0, "minor.width": 1.0}
        plt.rcParams.update({f"{axis}.{name}": size for name, size in sizes.items()})
    plt.rcParams.update(
        {
            # as `seaborn.set_theme(style="ticks", palette="colorblind", font_scale=0.85)`, without seaborn's 0.8 s
            "axes.prop_cycle": plt.cycler(color=PALETTE),
            "font.sans-serif": ["Arial", "DejaVu Sans", "Liberation Sans", "Bitstream Vera Sans", "sans-serif"],
            **dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize", "legend.title_fontsize"), 10.2),
            "legend.fontsize": 9.35,
            "grid.linewidth": 1.0,
            "patch.edgecolor": "w",
            "patch.force_edgecolor": True,
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
    pictures.install()


def panels(
    count: int, ratios: Sequence[float] | None = None, height: float = 3.6, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of the width of a page with panels side by side; ratios: their widths; height: in inches."""
    size = (WIDTH, height)
    figure, axes = plt.subplots(1, count, figsize=size, width_ratios=ratios, sharey=sharey, squeeze=False)
    return figure, list(axes[0])


def curves(
    table: pd.DataFrame,
    hue: str,
    order: Sequence,
    labels: Sequence[str],
    ax: Axes,
    palette: Sequence[str] | None = None,
    shade: bool = True,
) -> None:
    """Lines of the mean over seeds against the step, with a band from the lowest to the highest seed.

    table: with columns step, value, seed and `hue`. Each value of `hue` in `order` has a line; `labels` name them.
    palette: their colours. shade: whether there is a band; if not, a bar beside the end, so that many lines can be told
    apart.
    """
    for i, (value, label) in enumerate(zip(order, labels, strict=True)):
        seeds = table[table[hue] == value].groupby("step")["value"].agg(["mean", "min", "max"])
        (line,) = ax.plot(seeds.index, seeds["mean"], color=palette[i] if palette else f"C{i}", label=label)
        _spread(ax, line, seeds["min"], seeds["max"], RANGE, None if shade else i)
    ax.set_xlabel("training step")


def gaps(
    table: pd.DataFrame,
    axis: str,
    order: Sequence,
    baseline: object,
    ax: Axes,
    palette: Sequence[str] | None = None,
    shade: bool = True,
) -> None:
    """Lines of the difference to a baseline against the step, seed by seed: mean and 95 % interval.

    table: with columns step, seed, value and `axis`. Each value of `axis` in `order` has a line; `baseline` is another.
    palette, shade: as in `curves`.
    """
    wide = table.pivot(index=["step", "seed"], columns=axis, values="value")
    for i, value in enumerate(order):
        differences = (wide[value] - wide[baseline]).dropna().groupby("step")
        estimates = pd.DataFrame([vars(estimate(part)) for _, part in differences], index=list(differences.groups))
        colour = palette[i] if palette else f"C{i}"
        (line,) = ax.plot(estimates.index, estimates["mean"], color=colour, label=f"_{value}")
        low, high = estimates["mean"] - estimates["half"], estimates["mean"] + estimates["half"]
        _spread(ax, line, low, high, INTERVAL, None if shade else i)
    ax.axhline(0, color="0.3", linewidth=0.8)
    ax.set_xlabel("training step")


def _spread(ax: Axes, line: Line2D, low: pd.Series, high: pd.Series, label: str, number: int | None) -> None:
    """What seeds or chance leave open of a line: a band, or with a number the bar of that number beside its end.

    `label` says in the legend what it means.
    """
    if number is None:
        ax.fill_between(low.index, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        if label not in ax.get_legend_handles_labels()[1]:
            ax.fill_between([], [], [], color="0.5", alpha=0.3, linewidth=0, label=label)
    else:
        beside = low.index[-1] + 0.03 * (number + 1) * (low.index[-1] - low.index[0])
        ax.plot([beside] * 2, [low.iloc[-1], high.iloc[-1]], color=line.get_color(), linewidth=2)
        if (label := BAR + label) not in ax.get_legend_handles_labels()[1]:
            ax.plot([], [], color="0.5", linewidth=2, label=label)


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
    style = {"marker": "o", "markersize": 6, "capsize": 3, "linestyle": "none", "color": "0.2", "label": MEAN, **kwargs}
    values = list(estimates.values())
    ax.errorbar(
        [e.mean for e in values], range(len(values)), xerr=[e.half if e.n > 1 else 0.0 for e in values], **style
    )
    ax.axvline(0, color="0.3", linewidth=0.8)
    ax.set_yticks(range(len(values)), list(estimates))
    ax.set_ylim(len(values) - 0.5, -0.5)


def legend_below(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    """One legend for all panels, below them, with each entry once, but for lines that bear their names already."""
    entries = {}
    for ax in axes:
        if ax.get_legend() is not None:
            ax.get_legend().remove()
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            if not isinstance(handle, Line2D) or handle.get_gid() != NAMED:
                entries.setdefault(label, handle)
    labels = sorted(
        entries, key=lambda label: label.removeprefix(BAR) in (RANGE, INTERVAL)
    )  # what spreads mean comes last
    figure.legend([entries[label] for label in labels], labels, loc="outside lower center", ncols=columns)


def names_beside(ax: Axes) -> None:
    """The name of each labelled line beside its last visible point, instead of a legend; names are moved apart.

    To be called when the limits of the axes are final.
    """
    drawn = (line for line in ax.get_lines() if line.get_linestyle() != "None" and len(line.get_xdata()))
    lines = [line for line in drawn if not str(line.get_label()).startswith("_")]
    ends = []
    ax.get_xlim(), ax.get_ylim()  # settles them
    for line in lines:
        points = ax.transAxes.inverted().transform(line.get_transform().transform(line.get_xydata()))
        seen = points[((points > -1e-6) & (points < 1 + 1e-6)).all(axis=1)]
        ends.append((seen if len(seen) else points.clip(0, 1))[-1])
    order = sorted(range(len(lines)), key=lambda i: ends[i][1])
    line_height = 1.5 * NAME / 72 / (0.9 * ax.get_position().height * ax.figure.get_figheight())  # as a share
    sizes = [line_height * (1 + str(lines[i].get_label()).count("\n")) for i in order]
    heights = _apart([ends[i][1] for i in order], sizes)
    for i, height in zip(order, heights, strict=True):
        lines[i].set_gid(NAMED)
        colour = lines[i].get_color()
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)}
        ax.annotate(
            str(lines[i].get_label()), ends[i], (1.05, height), "axes fraction", "axes fraction", leader, False,
            color=colour, fontsize=NAME, va="center",
        )  # fmt: skip


def _apart(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Places near those wanted, which ascend and start at 0 or above, so that what has these sizes does not overlap."""
    places = np.array(wanted, dtype=float)
    steps = (np.array(sizes[1:]) + np.array(sizes[:-1])) / 2
    for _ in range(500):
        short = steps - np.diff(places)
        if not (short > 1e-6).any():
            break
        for i in np.flatnonzero(short > 1e-6):
            push = max(0.0, steps[i] - (places[i + 1] - places[i])) / 2
            places[i : i + 2] += (-push, push)
    places -= max(0.0, places[-1] - 1)
    return list(places + max(0.0, -places[0]))


def names_at(ax: Axes, points: Sequence[tuple[str, float, float]], **kwargs) -> None:
    """A name beside each point of a scatter plot, where it covers no other point or name.

    points: a name, x and y each, in data coordinates. To be called when the limits of the axes are final.
    """
    ax.get_xlim(), ax.get_ylim()  # settles them
    scale = 72 / ax.figure.dpi
    taken: list[tuple[float, float, float, float]] = []  # boxes, in points as everything here
    for line in ax.get_lines():
        if len(line.get_xdata()):
            room = 2 if line.get_marker() == "None" else 4
            spots = line.get_transform().transform_path(Path(line.get_xydata()))
            spots = (spots if line.get_linestyle() == "None" else spots.interpolated(40)).vertices * scale
            taken += [(x - room, y - room, x + room, y + room) for x, y in spots]
    for bars in ax.collections:
        for path in bars.get_paths():
            x0, y0, x1, y1 = bars.get_transform().transform_path(path).get_extents().extents * scale
            taken.append((x0 - 1, y0 - 1, x1 + 1, y1 + 1))
    frame = ax.get_window_extent().extents * scale
    for name, *where in points:
        x, y = ax.transData.transform(where) * scale
        width, height = 0.62 * NAME * len(name), 1.2 * NAME
        choices = []
        for distance in (6, 14, 24, 36, 50, 70):
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
                left = x + dx * distance - (0 if dx > 0 else width if dx < 0 else width / 2)
                low = y + dy * distance - (0 if dy > 0 else height if dy < 0 else height / 2)
                box = (left, low, left + width, low + height)
                hits = sum(b[0] < box[2] and b[2] > box[0] and b[1] < box[3] and b[3] > box[1] for b in taken)
                hits += 3 * (box[0] < frame[0] or box[2] > frame[2] or box[1] < frame[1] or box[3] > frame[3])
                choices.append((hits, distance, box))
        _, distance, box = min(choices, key=lambda choice: choice[:2])
        taken.append(box)
        offset = (box[0] - x, (box[1] + box[3]) / 2 - y)
        leader = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6} if distance > 6 else None
        ax.annotate(
            name, where, offset, textcoords="offset points", va="center", fontsize=NAME, arrowprops=leader, **kwargs
        )


def band(ax: Axes, table: pd.DataFrame, **kwargs) -> None:
    """A line of the mean over seeds with a band for its 95 % interval; table: [step or other index, seed]."""
    estimates = table.apply(estimate, axis=1)
    (line,) = ax.plot(estimates.index, [e.mean for e in estimates], **kwargs)
    low, high = estimates.map(lambda e: e.low), estimates.map(lambda e: e.high)
    _spread(ax, line, low, high, INTERVAL, None)


def plain(axis: Axis, ticks: Sequence[float]) -> None:
    """Label a logarithmic axis with plain numbers: those of `ticks` that lie in the range that it shows."""
    low, high = axis.get_view_interval()
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(shown, [f"{tick:g}" for tick in shown])
    axis.set_ticks([], minor=True)


def matrix(ax: Axes, values: pd.DataFrame, texts: pd.DataFrame, limits: tuple[float, float], colours: str) -> None:
    """A table as coloured squares with a text in each; a cell whose value is missing stays white.

    values, texts: of one shape, with names of rows and columns. limits: the values of the first and the last colour.
    colours: the name of a colour map. Text is white on dark squares.
    """
    image = ax.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    for (i, j), value in np.ndenumerate(values.to_numpy(float)):
        if np.isfinite(value):
            dark = np.dot(image.cmap(image.norm(value))[:3], (0.299, 0.587, 0.114)) < 0.5
            ax.text(j, i, texts.iat[i, j], ha="center", va="center", fontsize=NAME, color="white" if dark else "black")
    ax.set_xticks(range(values.shape[1]), values.columns, rotation=90)
    ax.set_yticks(range(values.shape[0]), values.index)
    ax.tick_params(length=0)
    ax.grid(False)


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


def bars(ax: Axes, rows: Sequence[float], left: np.ndarray, width: np.ndarray | float, height: float, **look) -> None:
    """Horizontal bars around their rows, as of `barh`. Many are one collection, which takes a tenth of the time.

    look: color, edgecolor and linewidth, each one or one for each bar, and for few bars whatever `barh` takes.
    """
    if len(rows) <= MOST_NAMED:
        ax.barh(rows, width, left=left, height=height, **look)
        return
    low, right = np.asarray(rows, dtype=float) - height / 2, np.asarray(left) + width
    corners = [(left, low), (right, low), (right, low + height), (left, low + height)]
    names = {"color": "facecolors", "edgecolor": "edgecolors", "linewidth": "linewidths"}
    kept = {names[name]: value for name, value in look.items() if name in names}
    ax.add_collection(PolyCollection(np.stack([np.stack(corner, -1) for corner in corners], 1), **kept))
    ax.autoscale_view()


def gantt(
    tasks: pd.DataFrame, groups: Sequence[Sequence[int]], ax: Axes, names: Mapping[int, str] | None = None
) -> None:
    """The tasks of a schedule as bars, one row a node, one colour a microbatch.

    tasks: with columns node, microbatch, kind, start and end, both in seconds. groups: the nodes of each stage, the
    first stage on top. names: those of the nodes, by default their numbers. Bars bear the microbatch, from 1, where
    there are not too many. Forward passes are pale and backward passes framed.
    """
    rows = {node: row for row, node in enumerate(node for group in groups for node in group)}
    from seaborn import color_palette

    colours = color_palette("husl", int(tasks["microbatch"].max()) + 1)
    back = tasks["kind"] == "backward"
    bars(
        ax,
        [rows[node] for node in tasks["node"]],
        tasks["start"].to_numpy(),
        (tasks["end"] - tasks["start"]).to_numpy(),
        height=0.82,
        color=[(*colours[m], 1.0 if framed else 0.6) for m, framed in zip(tasks["microbatch"], back, strict=True)],
        edgecolor=["0.15" if framed else "white" for framed in back],
        linewidth=[0.9 if framed else 0.5 for framed in back],
    )
    for task in tasks[tasks["kind"] != "loss"].itertuples() if len(tasks) <= MOST_NAMED else ():
        middle = (task.start + task.end) / 2
        ax.text(middle, rows[task.node], task.microbatch + 1, ha="center", va="center", fontsize=7)
    labels = {node: str(node) for node in rows} | dict(names or {})
    for stage, (head, *_) in enumerate(groups):
        labels[head] += f" (stage {stage})"
        if stage:
            ax.axhline(rows[head] - 0.5, color="0.3", linewidth=0.8)
    heads, step = {head for head, *_ in groups}, -(-len(rows) // MOST_LABELS)
    named = {row: labels[node] for node, row in rows.items() if node in heads or row % step == 0}
    ax.set_yticks(list(named), list(named.values()), fontsize=7)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(False)
    ax.set_xlabel("seconds")
