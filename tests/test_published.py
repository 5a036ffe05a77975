"""What CheckFree printed: readable, unambiguous, and consistent as far as the paper itself is."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from swarmbook.analysis.claims import printed, published
from swarmbook.methods.failures import SCHEDULE_RATES, events, released_schedule
from swarmbook.methods.model_size import Shape
from swarmbook.simulation.checkpointing import hours

PAPERS = Path(__file__).parents[1] / "papers"
TABLES = sorted(PAPERS.glob("*/published.csv"))
METHODS = ("checkpointing", "redundant computation", "CheckFree", "CheckFree+")
RATES = (5, 10, 16)


@pytest.fixture(scope="module")
def paper() -> pd.DataFrame:
    return published("checkfree")


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.parent.name)
def test_every_published_number_has_one_key_a_unit_and_a_source(path):
    table = published(path.parent.name)
    assert list(table.columns) == ["item", "series", "quantity", "value", "unit", "source", "note"]
    assert not table.duplicated(["item", "series", "quantity"]).any()
    assert pd.api.types.is_numeric_dtype(table["value"]) and np.isfinite(table["value"]).all()
    assert table.drop(columns="note").notna().all().all()
    text = table.select_dtypes(exclude="number").fillna("")
    assert (text == text.apply(lambda column: column.str.strip())).all().all()


def test_every_figure_and_table_is_there(paper):
    figures = {"figure 2", *(f"figure 3{part}" for part in "abc"), *(f"figure 4{part}" for part in "abc")}
    assert figures | {f"table {n}" for n in (1, 2, 3, 4)} <= set(paper["item"])
    per_table = paper.groupby("item").size()
    assert per_table["table 1"] == 7 * 4 and per_table["table 2"] == 3 * 12 and per_table["table 3"] == 4 * 3


def table_2(paper, method, rate):
    row = [printed(paper, "table 2", f"{method}, {rate} %", what) for what in ("iteration time", "train time")]
    return *row, printed(paper, "table 2", f"{method}, {rate} %", "iterations to loss 2.85")


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("method", METHODS)
def test_train_times_of_table_2_are_whole_validations(paper, method, rate):
    seconds, train, iterations = table_2(paper, method, rate)
    if (method, rate) == ("checkpointing", 16):  # printed beside 92.14 s, computed with the 91.35 s of the others
        assert abs(train * 3600 / seconds / 500 % 1 - 0.57) < 0.01
        seconds = table_2(paper, method, 10)[0]
    slack = 0.005 + iterations * 0.005 / 3600  # both are rounded to hundredths
    assert hours(iterations, seconds) == pytest.approx(train, abs=slack)
    assert iterations % 500 == 0


def test_figures_agree_with_table_2(paper):
    for method in METHODS:
        assert printed(paper, "figure 3b", method, "iterations to loss 2.85") == table_2(paper, method, 10)[2]
    for rate in RATES:
        assert (
            printed(paper, "figure 4a", f"{rate} %", "iterations to loss 2.85") == table_2(paper, "CheckFree+", rate)[2]
        )
    in_order = printed(paper, "figure 4c", "in order", "iterations to loss 2.85")
    assert {table_2(paper, "redundant computation", rate)[2] for rate in RATES} == {in_order}


def test_the_speed_up_of_the_abstract(paper):
    """Up to 12 % over redundant computation is CheckFree at 5 %; at 16 % both methods are slower than it."""
    percent = printed(paper, "abstract", "CheckFree and CheckFree+", "speed-up over redundant computation")
    ratio = {
        (method, rate): table_2(paper, method, rate)[1] / table_2(paper, "redundant computation", rate)[1]
        for method in METHODS
        for rate in RATES
    }
    assert int(100 * (1 - ratio["CheckFree", 5])) == percent
    assert int(100 * (1 - ratio["CheckFree+", 5])) == 15
    assert ratio["CheckFree", 16] > 1 and ratio["CheckFree+", 16] > 1


def test_the_transfer_time_of_the_introduction_takes_bytes_for_bits(paper):
    size, bandwidth, minutes = (
        printed(paper, "introduction", "checkpoint", what) for what in ("size", "bandwidth", "transfer time")
    )
    in_bits, in_bytes = size * 8e3 / bandwidth / 60, size * 1e3 / bandwidth / 60
    assert in_bits > 9 * minutes
    assert in_bytes == pytest.approx(minutes, rel=0.2)


def test_schedules_are_the_released_ones(paper):
    for percent, rate in SCHEDULE_RATES.items():
        series = f"{percent} %"
        assert printed(paper, "setting", series, "failure probability per stage and iteration") == rate
        scheduled = events(released_schedule(percent))
        assert printed(paper, "throughput schedule", series, "failures") == len(scheduled)
        rows = paper.query("item == 'throughput schedule' and series == @series and quantity != 'failures'")
        assert {f"stage lost at iteration {step}": stage for step, stage in scheduled} == dict(
            zip(rows["quantity"], rows["value"], strict=True)
        )


# What the released configurations come to, in millions: the layers, the ends, and both.
@pytest.mark.parametrize(
    ("model", "trunk", "ends", "total"),
    [("small", 50.3, 32.8, 83.1), ("medium", 402.7, 65.5, 468.2), ("large", 1610.7, 131.1, 1741.8)],
)
def test_models_are_not_of_the_sizes_that_table_4_names(paper, model, trunk, ends, total):
    size = {
        what: int(printed(paper, "table 4", f"{model} model", what))
        for what in ("stages", "layers", "layers per stage", "width", "heads", "parameters")
    }
    assert size["stages"] * size["layers per stage"] == size["layers"]
    shape = Shape(
        stages=size["stages"],
        layers_per_stage=size["layers per stage"],
        width=size["width"],
        heads=size["heads"],
        hidden=int(size["width"] * printed(paper, "setting", "all models", "hidden width over width")),
        vocabulary=int(printed(paper, "setting", "all models", "vocabulary")),
    )
    counted = np.array([shape.stages * shape.stage_parameters, shape.ends_parameters, shape.parameters])
    np.testing.assert_allclose(counted / 1e6, [trunk, ends, total], atol=0.06)
    assert abs(shape.parameters / size["parameters"] - 1) > 0.05
