"""What the figures draw."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from swarmbook.estimates import estimate
from swarmbook.figures import curves, intervals, panels, style

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
