"""What the figures draw."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from swarmbook.analysis import figures
from swarmbook.analysis.confidence import estimate
from swarmbook.analysis.figures import (
    INTERVAL,
    PAPER,
    RANGE,
    band,
    curves,
    dots,
    forest,
    gantt,
    gaps,
    intervals,
    legend_below,
    matrix,
    names_at,
    names_beside,
    panels,
    plain,
    style,
    timeline,
    zoom,
)
from swarmbook.analysis.pictures import overlaps

TABLE = pd.DataFrame(
    {
        "route": ["a"] * 4 + ["b"] * 4,
        "seed": [0, 0, 1, 1] * 2,
        "step": [0, 10] * 4,
        "value": [4.0, 2.0, 6.0, 3.0, 8.0, 5.0, 8.0, 7.0],
    }
)


@pytest.fixture(autouse=True)
def closed():
    style()
    yield
    plt.close("all")


def test_the_look_is_that_of_seaborn():
    """Which sets it, but for the colours of a map that names none, and is slow to load."""
    import seaborn

    ours = ("image.cmap", "figure.dpi", "savefig.bbox", "axes.grid", "grid.alpha", "axes.spines.top")
    ours += ("axes.spines.right", "axes.titlelocation", "legend.frameon", "figure.constrained_layout.use")
    with plt.rc_context():
        plt.rcdefaults()
        style()
        found = dict(plt.rcParams)
    with plt.rc_context():
        plt.rcdefaults()
        seaborn.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.85)
        wanted = dict(plt.rcParams)
    colours = [[to_hex(each["color"]) for each in look.pop("axes.prop_cycle")] for look in (found, wanted)]
    assert colours[0] == colours[1]
    assert {name: found[name] for name in found if name not in ours} == {
        name: wanted[name] for name in wanted if name not in ours
    }


def test_curves_are_means_over_seeds_in_the_order_asked():
    figure, (ax,) = panels(1)
    curves(TABLE, "route", ["b", "a"], ["second", "first"], ax, ["C3", "C4"])
    legend_below(figure, [ax], 3)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["second", "first", RANGE]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[8.0, 6.0], [5.0, 2.5]]
    assert [line.get_color() for line in ax.lines] == ["C3", "C4"]
    band_of_second = ax.collections[0].get_paths()[0].vertices
    assert {tuple(edge) for edge in band_of_second} >= {(0, 8.0), (10, 5.0), (10, 7.0)}


@pytest.mark.parametrize(
    ("draw", "label", "last"),
    [
        (lambda ax: curves(TABLE, "route", ["a", "b"], ["a", "b"], ax, shade=False), RANGE, [(2.0, 3.0), (5.0, 7.0)]),
        (
            lambda ax: gaps(TABLE, "route", ["b"], "a", ax, shade=False),
            INTERVAL,
            [(estimate([3.0, 4.0]).low, estimate([3.0, 4.0]).high)],
        ),
    ],
)
def test_instead_of_bands_there_are_bars_beside_the_end_and_the_legend_says_what_they_are(draw, label, last):
    figure, (ax,) = panels(1)
    draw(ax)
    bars = [line for line in ax.lines if len(set(line.get_xdata())) == 1 and line.get_xdata()[0] > 10]
    assert [tuple(bar.get_ydata()) for bar in bars] == [pytest.approx(ends) for ends in last]
    assert len({bar.get_xdata()[0] for bar in bars}) == len(bars), "bars stand side by side"
    assert not [area for area in ax.collections if len(area.get_paths())]
    legend_below(figure, [ax], 3)
    assert figure.legends[0].get_texts()[-1].get_text() == f"bar at the end: {label}"


def test_names_stand_beside_the_ends_of_their_lines_apart_and_not_in_the_legend():
    figure, (ax,) = panels(1)
    for name, end in (("high", 10.0), ("low", 0.0), ("nearly as low", 0.1), ("as low\nand long", 0.05)):
        ax.plot([0, 1], [5, end], label=name)
    ax.plot([0], [0], **PAPER)
    names_beside(ax)
    legend_below(figure, [ax], 2)
    figure.canvas.draw()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["paper"]
    heights = {text.get_text(): text.get_window_extent().y0 for text in ax.texts}
    assert heights["low"] < heights["as low\nand long"] < heights["nearly as low"] < heights["high"]
    assert [text.get_color() for text in ax.texts] == [line.get_color() for line in (ax.lines[i] for i in (1, 3, 2, 0))]
    assert overlaps(figure) == []


def test_a_line_that_leaves_the_panel_is_named_where_it_was_last_seen():
    figure, (ax,) = panels(1)
    ax.plot([0, 1, 2], [0, 1, 100], label="steep")
    ax.set(xlim=(0, 2), ylim=(0, 2))
    names_beside(ax)
    assert ax.texts[0].xy == pytest.approx((0.5, 0.5))


def test_names_at_points_cover_neither_points_nor_bars_nor_one_another():
    figure, (ax,) = panels(1)
    points = [(f"point {i}", x, y) for i, (x, y) in enumerate([(0, 0), (0.02, 0), (0, 0.02), (1, 1), (0.5, 0.5)])]
    for _, x, y in points:
        ax.errorbar(x, y, 0.1, fmt="o")
    ax.margins(0.2)
    names_at(ax, points)
    figure.canvas.draw()
    assert [text.get_text() for text in ax.texts] == [name for name, *_ in points]
    assert overlaps(figure) == []


def test_a_matrix_has_its_texts_in_legible_colours_and_leaves_missing_cells_white():
    _, (ax,) = panels(1)
    values = pd.DataFrame([[0.0, np.nan], [0.5, 1.0]], index=["a", "b"], columns=["x", "y"])
    matrix(ax, values, values.map("{:.1f}".format), (0, 1), "Greys")
    assert [(text.get_position(), text.get_text(), text.get_color()) for text in ax.texts] == [
        ((0, 0), "0.0", "black"),
        ((0, 1), "0.5", "black"),
        ((1, 1), "1.0", "white"),
    ]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["x", "y"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]


def test_intervals_are_the_claims_estimates_and_skip_what_is_missing():
    _, (ax,) = panels(1)
    last = TABLE[TABLE["step"] == 10]
    intervals(last, "route", ["missing", "a", "b"], ax, shift=0.1)
    points, (lower, upper), _ = ax.containers[0].lines
    assert points.get_xdata().tolist() == [1.1, 2.1]
    assert points.get_ydata().tolist() == [2.5, 6.0]
    half = estimate([2.0, 3.0]).half
    assert lower.get_ydata()[0] == pytest.approx(2.5 - half)
    assert upper.get_ydata()[0] == pytest.approx(2.5 + half)


def test_gaps_are_paired_by_seed():
    _, (ax,) = panels(1)
    gaps(TABLE, "route", ["b"], "a", ax)
    assert ax.lines[0].get_xdata().tolist() == [0, 10]
    assert ax.lines[0].get_ydata().tolist() == [3.0, 3.5]  # means of (4, 2) and (3, 4)
    low, high = ax.collections[0].get_paths()[0].vertices[:, 1].min(), estimate([4.0, 2.0]).low
    assert low == pytest.approx(min(high, estimate([3.0, 4.0]).low))


def test_dots_show_every_seed_and_the_mean():
    _, (ax,) = panels(1)
    dots(TABLE[TABLE["step"] == 10], "route", ["a", "b"], ax, shift=0.2, label="mean")
    seeds, means = ax.lines
    assert sorted(seeds.get_ydata()) == [2.0, 3.0, 5.0, 7.0]
    assert means.get_xdata().tolist() == [0.2, 1.2] and means.get_ydata().tolist() == [2.5, 6.0]


def test_a_forest_lists_estimates_from_the_top_and_one_seed_without_a_bar():
    _, (ax,) = panels(1)
    forest({"first": estimate([1.0, 3.0]), "second": estimate([5.0])}, ax)
    points, _, (bars,) = ax.containers[0].lines
    assert points.get_xdata().tolist() == [2.0, 5.0] and points.get_ydata().tolist() == [0, 1]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["first", "second"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    half = estimate([1.0, 3.0]).half
    assert [part[:, 0].tolist() for part in bars.get_segments()] == [[2.0 - half, 2.0 + half], [5.0, 5.0]]


def test_one_legend_below_stands_for_all_panels():
    figure, axes = panels(2)
    axes[0].plot([0, 1], [0, 1], label="one")
    axes[0].legend()
    for name in ("one", "two"):
        axes[1].plot([0, 1], [0, 1], label=name)
    legend_below(figure, axes, 2)
    assert all(ax.get_legend() is None for ax in axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]


def test_zoom_shows_the_lowest_values():
    _, (ax,) = panels(1)
    zoom(ax, [9.0, 4.0, 5.0], 2.0)
    low, high = ax.get_ylim()
    assert low < 4.0 and high == 6.0


def test_a_timeline_has_a_bar_for_every_task_that_takes_time():
    _, (ax,) = panels(1)
    tasks = [(0, "forward", 0.0, 2.0), (1, "forward", 2.0, 2.0), (1, "backward", 3.0, 7.0)]
    timeline(pd.DataFrame(tasks, columns=["node", "kind", "start", "end"]), {"forward": "C0", "backward": "C1"}, ax)
    bars = [(bar.get_x(), bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in ax.patches]
    assert bars == [(0.0, 2.0, 0.0), (3.0, 4.0, 1.0)]


def test_a_band_is_the_mean_over_seeds_and_its_interval():
    _, (ax,) = panels(1)
    table = TABLE[TABLE["route"] == "a"].pivot(index="step", columns="seed", values="value")
    band(ax, table, color="C1", label="a")
    assert ax.lines[0].get_ydata().tolist() == [5.0, 2.5]
    shown = {round(y, 9) for y in ax.collections[0].get_paths()[0].vertices[:, 1]}
    assert shown >= {round(edge, 9) for e in (estimate([4.0, 6.0]), estimate([2.0, 3.0])) for edge in (e.low, e.high)}


def test_plain_numbers_are_those_that_the_axis_shows():
    _, (ax,) = panels(1)
    ax.set(yscale="log", ylim=(3, 40))
    plain(ax.yaxis, (1, 5, 10, 20, 50))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["5", "10", "20"]
    assert not len(ax.yaxis.get_minorticklocs())


def test_many_bars_are_one_collection_of_the_same_rectangles(monkeypatch):
    monkeypatch.setattr(figures, "MOST_NAMED", 1)
    _, (ax,) = panels(1)
    figures.bars(ax, [0, 2], np.array([1.0, 3.0]), np.array([0.5, 2.0]), 0.8, color=["C0", "C1"], hatch=None)
    corners = [path.get_extents().bounds for path in ax.collections[0].get_paths()]
    assert np.allclose(corners, [(1.0, -0.4, 0.5, 0.8), (3.0, 1.6, 2.0, 0.8)]) and not ax.patches


def test_a_gantt_chart_has_a_bar_a_task_on_the_row_of_its_node():
    _, (ax,) = panels(1)
    rows = [
        (7, 0, "forward", 0.0, 1.0),
        (3, 0, "forward", 1.5, 2.5),
        (7, 0, "loss", 3.0, 3.2),
        (3, 0, "backward", 4, 6),
    ]
    gantt(pd.DataFrame(rows, columns=["node", "microbatch", "kind", "start", "end"]), [(7,), (3,)], ax)
    bars = [(bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_width()) for bar in ax.patches]
    assert [(round(y), x, round(w, 9)) for y, x, w in bars] == [
        (0, 0.0, 1.0),
        (1, 1.5, 1.0),
        (0, 3.0, 0.2),
        (1, 4.0, 2.0),
    ]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["7 (stage 0)", "3 (stage 1)"]
    assert [text.get_text() for text in ax.texts] == ["1", "1", "1"]
