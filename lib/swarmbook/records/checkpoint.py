"""Work in progress: how far the training of a pack of runs has come, kept so that it survives being killed.

A pack is a set of runs that are trained together, side by side in one set of tensors.

Serves: every run that trains.
"""

import hashlib
import json
import math
import os
import shutil
import stat
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from swarmbook.errors import LostProgress, StoreError
from swarmbook.records.atomic_files import open_regular, read, save_tensors, write, writes
from swarmbook.records.keys import canonical, key_of
from swarmbook.records.locks import Lock

LOOK = 1.0  # seconds between two looks at the locks: a pack has many, and writes many rows


class WorkInProgress:
    """What a pack has reached: a checkpoint, and a stream of metrics that is cut back to it when training resumes.

    Files: `pack.json` says which runs these are. `metrics.jsonl` holds the metrics, one row a line. `checkpoint.json`
    holds the step, how much of the stream belongs to it, checksums, and the name of the file with the weights. Two such
    files take turns, so that one is always whole.

    locks: those of the runs, which this process holds. Whoever reads or writes here notices what others did to the
    folder meanwhile, and raises LostProgress: a lock or a file was deleted, or the stream is not what this process
    wrote. What the last checkpoint holds is then still good, and `load` checks it.
    """

    def __init__(self, folder: Path, locks: Sequence[Lock] = ()):
        self.folder = folder
        self._locks = locks
        self._stream = folder / "metrics.jsonl"
        self._mark = folder / "checkpoint.json"
        self._digest: Any = None  # of the stream so far; None until this process knows where it goes on
        self._size = 0  # of the stream, in bytes
        self._looked = -math.inf  # when the locks were last looked at

    def load(self) -> tuple[dict[str, Any], int] | None:
        """The last checkpoint (tensors on the CPU) and its step, or None to start again.

        Drops metrics appended after that checkpoint. Damage is named in a warning, and the pack starts again.
        """
        try:
            mark = _unseal(read(self._mark))
            size, digest, weights = mark["bytes"], mark["stream"], self.folder / mark["file"]
            with open_regular(self._stream) as stream:
                seen = hashlib.sha256()
                for start in range(0, size, 1 << 20):
                    seen.update(stream.read(min(1 << 20, size - start)))
            if seen.hexdigest() != digest:
                raise ValueError(f"{self._stream.name} does not match its checksum")
            with open_regular(weights) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != mark["weights"]:
                    raise ValueError(f"{weights.name} does not match its checksum")
        except (ValueError, KeyError, OSError) as damage:
            if self._mark.exists():
                warnings.warn(f"{self.folder} is damaged and starts again: {damage}", stacklevel=2)
            self._restart()
            return None
        import torch

        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:  # whole, but of another version: torch raises what it likes
            raise StoreError(f"torch cannot read {weights}; delete {self.folder} to start anew") from error
        with writes(self._stream):
            os.truncate(self._stream, size)
        self._digest, self._size = seen, size
        return state, mark["step"]

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows of metrics to the stream. Without a `load` before, the pack starts again from nothing."""
        if self._digest is None:
            self._restart()
        data = "".join(json.dumps(row, default=_plain) + "\n" for row in rows).encode()
        self._check_own()
        with writes(self._stream), self._stream.open("ab") as stream:
            stream.write(data)
        self._digest.update(data)
        self._size += len(data)

    def save(self, state: dict[str, Any], step: int) -> None:
        """Replace the checkpoint. state: what torch.load(weights_only=True) reads, as it is after `step` steps."""
        if self._digest is None:
            self._restart()
        self._own_stream()
        last = None
        with suppress(ValueError, KeyError, OSError):
            last = _unseal(read(self._mark))["file"]
        name = "b.pt" if last == "a.pt" else "a.pt"
        with writes(self.folder):
            try:
                with (self.folder / name).open("w+b") as file:
                    save_tensors(state, file)
                    file.flush()
                    os.fsync(file.fileno())
                    file.seek(0)
                    weights = hashlib.file_digest(file, "sha256").hexdigest()
                with self._stream.open("ab") as stream:
                    os.fsync(stream.fileno())
                mark = {"step": step, "bytes": self._size, "stream": self._digest.hexdigest()}
                write(self._mark, _seal({**mark, "file": name, "weights": weights}))
            except OSError as error:
                if not self.folder.is_dir():
                    raise LostProgress(f"{self.folder} was deleted while its runs were in training") from error
                (self.folder / name).unlink(missing_ok=True)
                raise
            if last:
                (self.folder / last).unlink(missing_ok=True)

    def metrics(self) -> pd.DataFrame:
        """All rows so far, in order; none before a `load` or `append`.

        Text is categories in alphabetical order. What a row lacks is NaN.
        """
        data = b"" if self._digest is None else self._own_stream()
        frame = pd.DataFrame([json.loads(line) for line in data.splitlines()])
        return frame.astype({name: "category" for name in frame if frame[name].dtype == "str"})

    def discard(self) -> None:
        """Remove the folder, once the runs of the pack are all put or nobody wants them."""
        shutil.rmtree(self.folder, ignore_errors=True)  # what stays, the next opening removes

    def _restart(self) -> None:
        with writes(self.folder):
            for path in (self._mark, self._stream, *self.folder.glob("*.pt"), *self.folder.glob("*.tmp")):
                path.unlink(missing_ok=True)
            self._stream.write_bytes(b"")
        self._digest, self._size = hashlib.sha256(), 0

    def _check_own(self) -> None:
        """Raise LostProgress if another process can have written here, or the stream has another length than due."""
        now = time.monotonic()
        if now - self._looked > LOOK:
            self._looked = now
            if lost := [lock.path.stem for lock in self._locks if not lock.own]:
                raise LostProgress(f"the lock of run {lost[0]} was deleted while this process trained the run")
        try:
            status = self._stream.stat()
        except OSError:
            raise LostProgress(f"{self._stream} was deleted while its runs were in training") from None
        if not stat.S_ISREG(status.st_mode) or status.st_size != self._size:
            raise LostProgress(f"{self._stream} has {status.st_size} bytes, not {self._size}: something else wrote it")

    def _own_stream(self) -> bytes:
        """All of the stream; raises LostProgress unless it is, to the byte, what this process wrote or found good."""
        self._looked = -math.inf
        self._check_own()
        data = read(self._stream)
        if hashlib.sha256(data).digest() != self._digest.digest():
            raise LostProgress(f"{self._stream} is not what this process wrote: something else changed it")
        return data


def _seal(mark: dict) -> bytes:
    return canonical({"mark": mark, "seal": key_of(mark)}).encode()


def _unseal(data: bytes) -> dict:
    sealed = json.loads(data)
    if key_of(sealed["mark"]) != sealed["seal"]:
        raise ValueError("checkpoint.json does not match its checksum")
    return sealed["mark"]


def _plain(value: Any) -> Any:
    """A numpy or torch scalar as Python's own."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a metric must be a number, a bool or a string, not {value!r}")
