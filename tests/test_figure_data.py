"""The numbers that a picture carries are those that the figure draws."""

import csv
import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from swarmbook.analysis import figure_data, figures, pictures


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def rows(text: str) -> list[dict]:
    return list(csv.DictReader(io.StringIO(text)))


def of(text: str, kind: str, *columns: str) -> list[tuple]:
    return [tuple(row[column] for column in columns) for row in rows(text) if row["kind"] == kind]


def test_every_kind_of_mark_is_there_once():
    figure, (left, right) = figures.panels(2)
    left.set_title("losses", loc="left")
    left.plot([0, 1, 2], [3, 4, np.nan], label="ours")
    left.plot([0], [9], "D", label="paper")
    left.fill_between([0, 1], [2, 3], [4, 5], label="spread")
    left.errorbar([0, 1], [1, 2], [0.5, 0.25], capsize=2, linestyle="none", label="mean")
    left.axhline(7)
    right.bar([0, 1], [5, 6], width=0.5, label="bars")
    right.scatter([3], [4], label="dots")
    right.set_xticks([0, 1, 3], ["a", "b", "c"])
    left.text(0, 0, "no data")
    text = figure_data.table(figure)
    assert {row["panel"] for row in rows(text)} == {"losses", "panel 2"}
    assert of(text, "line", "series", "x", "y") == [("ours", "0", "3"), ("ours", "1", "4"), ("ours", "2", "")]
    assert of(text, "point", "series", "x", "y") == [
        ("paper", "0", "9"),
        ("mean", "0", "1"),
        ("mean", "1", "2"),
        ("dots", "c", "4"),
    ]
    assert of(text, "band", "series", "x", "y", "x_to", "y_to") == [
        ("spread", "0", "2", "0", "4"),
        ("spread", "1", "3", "1", "5"),
    ]
    intervals = of(text, "interval", "series", "x", "y", "y_to")
    assert intervals == [("mean", "0", "0.5", "1.5"), ("mean", "1", "1.75", "2.25")]
    assert of(text, "bar", "x", "y", "y_to") == [("a", "0", "5"), ("b", "0", "6")]
    assert of(text, "reference line", "x", "y") == [("", "7")]
    assert len(rows(text)) == 3 + 4 + 2 + 2 + 2 + 1


def test_a_heat_map_has_its_cells_and_not_its_key():
    import seaborn as sns

    figure, ax = plt.subplots()
    sns.heatmap(pd.DataFrame([[1.5, 2.5]], ["row"], ["one", "two"]), ax=ax)
    assert of(figure_data.table(figure), "cell", "value") == [("1.5",), ("2.5",)]


def test_a_picture_carries_its_numbers_and_stays_small():
    figure, (ax,) = figures.panels(1)
    table = pd.DataFrame(
        [(arm, seed, step, step * (seed + 1)) for arm in "ab" for seed in (0, 1) for step in range(3)],
        columns=["arm", "seed", "step", "value"],
    )
    figures.curves(table, "arm", ["a", "b"], ["A", "B"], ax)
    picture, _ = pictures.picture(figure)
    text = pictures.numbers_of(picture)
    assert text == figure_data.table(figure)
    means = table[table["arm"] == "a"].groupby("step")["value"].mean()
    assert [float(y) for _, y in of(text, "line", "series", "y")[:3]] == list(means)
    assert len(picture) < 1.05 * len(without_texts(picture))
    assert pictures.numbers_of(without_texts(picture)) is None


def without_texts(picture: bytes) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.open(io.BytesIO(picture)).save(file, "PNG")
    return file.getvalue()
