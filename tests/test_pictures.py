"""How figures leave a notebook: density, descriptions, and what lies over something else."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from swarmbook.analysis.figures import PAPER, forest, legend_below, panels, style
from swarmbook.analysis.pictures import LONGEST, described, overlaps, picture


@pytest.fixture(autouse=True)
def closed():
    style()
    yield
    plt.close("all")


def found(figure) -> list[str]:
    figure.canvas.draw()
    return overlaps(figure)


def test_a_picture_has_twice_the_density_and_says_its_size_on_the_page():
    figure, (ax,) = panels(1, height=4)
    ax.plot([0, 1], [2, 3], label="a")
    ax.set(xlabel="training step", ylabel="loss (nats per token)", title="Loss")
    png, metadata = picture(figure)
    assert Image.open(io.BytesIO(png)).size == (2 * metadata["width"], 2 * metadata["height"]) == (2090, 880)
    assert metadata["alt"] == "Loss: loss (nats per token) against training step: a: from 2 to 3"
    assert "overlaps" not in metadata
    assert figure.dpi == 110, "the figure itself stays as it was"


def test_a_picture_keeps_the_colours_of_the_palette():
    figure, (ax,) = panels(1)
    for i in range(8):
        ax.bar(i, 1, color=f"C{i}")
    image = Image.open(io.BytesIO(picture(figure)[0])).convert("RGB")
    shown = np.array([colour for _, colour in image.getcolors(1 << 16)])
    for i in range(8):
        wanted = 255 * np.array(plt.matplotlib.colors.to_rgb(f"C{i}"))
        assert np.abs(shown - wanted).max(axis=1).min() <= 8, f"C{i} has become another colour"


def test_a_figure_without_axes_is_no_picture():
    assert picture(plt.figure()) is None


def test_a_description_has_the_values_at_the_names_of_an_axis_and_what_is_hidden_from_the_legend():
    figure, (left, right) = panels(2)
    forest({"first": _estimate(1.5), "second\nline": _estimate(-2)}, left)
    left.set(xlabel="change (%)", title="Left")
    right.plot([0, 5, 9], [3, 1, 2], label="_a line of the other panel")
    right.plot(5, 2, **PAPER)
    right.plot([], [], label="only a key")
    said = described(figure)
    assert said.startswith("Left: change (%): mean, 95 % interval over seeds: first 1.5, second line -2. ")
    assert said.endswith("paper: 2; only a key; a line of the other panel: from 3 to 2")


def test_a_drawing_says_itself_what_it_shows_and_long_descriptions_end_with_a_word():
    figure, (ax,) = panels(1)
    for i in range(500):
        ax.plot([0, 1], [0, i], label=f"number {i}")
    assert LONGEST - 20 < len(described(figure)) <= LONGEST and described(figure).endswith(" ...")
    figure.set_label("A fan of lines.")
    assert described(figure) == "A fan of lines."


def _estimate(mean):
    from swarmbook.analysis.confidence import estimate

    return estimate([mean - 1, mean + 1])


def test_a_legend_over_curves_is_found_and_one_below_is_not():
    figure, (ax,) = panels(1)
    ax.plot([0, 1], [0, 1], label="a")
    ax.set_title("Panel")
    ax.legend(loc="center")
    assert found(figure) == ["the legend of 'a' lies over data of 'Panel'"]
    legend_below(figure, [ax], 1)
    assert found(figure) == []


@pytest.mark.parametrize("mark", ["points", "band", "bar"])
def test_a_text_over_any_mark_is_found(mark):
    figure, (ax,) = panels(1)
    ax.set(xlim=(0, 1), ylim=(0, 1), title="Panel")
    if mark == "points":
        ax.plot([0.52], [0.51], "o")
    elif mark == "band":
        ax.fill_between([0, 1], [0, 0], [0.5, 0.6])
    else:
        ax.bar(0.5, 0.51, width=0.01)
    ax.text(0.5, 0.5, "text")
    assert found(figure) == ["'text' lies over data of 'Panel'"]


def test_names_within_bars_and_texts_with_boxes_of_their_own_are_no_fault():
    figure, (ax,) = panels(1)
    ax.barh(0, 10)
    ax.text(5, 0, "7", ha="center", va="center")
    ax.plot([0, 10], [1, 1])
    ax.text(5, 1, "stage 1", ha="center", va="center", bbox={"fc": "white"})
    assert found(figure) == []


def test_labels_that_overlap_are_found():
    figure, (left, _) = panels(2)
    left.set_xticks([0, 0.01, 1], ["first of all", "second", "third"])
    assert found(figure) == ["'first of all' lies over 'second'"]


def test_what_is_cut_off_is_found():
    figure, (_, right) = panels(2)
    right.set_title("A title that is so much longer than its panel that it would end beyond the edge of the figure")
    assert found(figure) == [f"{right.get_title('left')!r} is cut off at the edge"]


def test_marks_beyond_the_limits_of_a_panel_are_not_looked_at():
    figure, (ax,) = panels(1)
    ax.plot([0, 1, 2], [0, 1, 9])
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.text(1.02, 0.5, "beside", transform=ax.transAxes)
    assert found(figure) == []


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_marks_without_a_finite_place_are_no_fault():
    figure, (ax,) = panels(1)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.errorbar([0.5], [np.nan], [np.nan], fmt="o")
    ax.text(0.5, 0.5, "text")
    assert found(figure) == []
