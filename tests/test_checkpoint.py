"""Work in progress: training goes on from the last checkpoint, and never from a damaged one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from swarmbook.errors import StoreError
from swarmbook.records.checkpoint import WorkInProgress


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pack"
    folder.mkdir()
    return folder


def test_resume(folder):
    progress = WorkInProgress(folder)
    assert progress.load() is None
    state = {"weights": torch.arange(4.0), "adam": {"step": 3, "rate": 0.1}, "generator": {"state": 2**100}}
    progress.append([{"step": 1, "metric": "loss", "value": np.float32(0.5)}, {"step": 2, "value": np.inf}])
    progress.save({}, 1)
    progress.save(state, 2)
    progress.append([{"step": 3, "metric": "lost"}])
    assert len(progress.metrics()) == 3

    progress = WorkInProgress(folder)
    loaded, step = progress.load()
    assert step == 2 and loaded.pop("weights").equal(torch.arange(4.0))
    assert loaded == {key: state[key] for key in ("adam", "generator")}
    progress.append([{"step": 3, "metric": "accuracy", "value": 1}])
    table = progress.metrics()
    assert list(table.step) == [1, 2, 3] and list(table.metric.cat.categories) == ["accuracy", "loss"]
    assert table.value[1] == np.inf
    progress.discard()
    assert not folder.exists()


@pytest.mark.parametrize("file", ["metrics.jsonl", "checkpoint.json", "weights"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing"])
def test_damaged_progress_starts_again(folder, file, damage):
    progress = WorkInProgress(folder)
    progress.append([{"step": step} for step in range(20)])
    progress.save({"weights": list(range(50))}, 20)
    path = next(folder.glob("*.pt")) if file == "weights" else folder / file
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes({"flip": flipped, "cut": whole[:-1], "empty": b"", "missing": b""}[damage])
    if damage == "missing":
        path.unlink()
    progress = WorkInProgress(folder)
    if (file, damage) == ("checkpoint.json", "missing"):  # as if killed before the first checkpoint
        assert progress.load() is None
    else:
        with pytest.warns(UserWarning, match=f"{folder} is damaged and starts again"):
            assert progress.load() is None
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]
    progress.append([{"step": 0}])
    assert list(progress.metrics().step) == [0]


def test_every_flip_in_a_checkpoint_note_is_found(folder):
    progress = WorkInProgress(folder)
    progress.append([{"step": 1}])
    progress.save({}, 1)
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    note = folder / "checkpoint.json"
    for position in range(len(kept[note])):
        for path, data in kept.items():
            path.write_bytes(data)
        torn = bytearray(kept[note])
        torn[position] ^= 1 << position % 8
        note.write_bytes(torn)
        with pytest.warns(UserWarning, match="is damaged and starts again"):
            assert WorkInProgress(folder).load() is None


def test_starting_without_load_forgets_the_past(folder):
    progress = WorkInProgress(folder)
    progress.append([{"step": 1}])
    progress.save({}, 1)
    progress = WorkInProgress(folder)
    progress.append([{"step": 0}])
    assert list(progress.metrics().step) == [0]
    assert WorkInProgress(folder).load() is None


def test_checkpoint_of_another_torch_is_named(folder):
    progress = WorkInProgress(folder)
    progress.save({"path": Path("x")}, 1)  # what weights_only refuses
    with pytest.raises(StoreError, match=f"torch cannot read .*; delete {folder}"):
        WorkInProgress(folder).load()
