"""What the figures draw."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from swarmbook.estimates import estimate
from swarmbook.figures import curves, dots, gaps, intervals, panels, style

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
