"""What the figures draw."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from swarmbook.analysis.confidence import estimate
from swarmbook.analysis.figures import (
    band,
    curves,
    dots,
    forest,
    gantt,
    gaps,
    intervals,
    legend_below,
    panels,
    plain,
    style,
    timeline,
    zoom,
)

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


def test_curves_are_means_over_seeds_in_the_order_asked():
    _, (ax,) = panels(1)
    curves(TABLE, "route", ["b", "a"], ["second", "first"], ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["second", "first"]
    assert [line.get_ydata().tolist() for line in ax.lines[:2]] == [[8.0, 6.0], [5.0, 2.5]]


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
