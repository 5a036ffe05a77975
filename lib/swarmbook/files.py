"""Files that are there whole or not at all, and the spelling of JSON that checksums and keys are taken of."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from swarmbook.errors import StoreError


def canonical(value: Any, name: str = "payload") -> str:
    """JSON with one spelling for each value: sorted keys, no spaces, ASCII.

    Raises ValueError for NaN and infinities and TypeError for what JSON does not have; the message calls the
    value `name`.
    """

    def check(part: Any, where: str) -> None:
        if isinstance(part, dict):
            for key, item in part.items():
                if not isinstance(key, str):
                    raise TypeError(f"{where} has the key {key!r}; JSON needs strings: use {str(key)!r}")
                check(item, f"{where}.{key}")
        elif isinstance(part, list | tuple):
            for index, item in enumerate(part):
                check(item, f"{where}[{index}]")
        elif isinstance(part, float) and not math.isfinite(part):
            raise ValueError(f"{where} is {part}; JSON has no such number: use None or a string")
        elif not isinstance(part, str | int | float | None):
            kind = type(part).__name__
            raise TypeError(f"{where} is a {kind} ({part!r}); expected dict, list, str, int, float or None")

    check(value, name)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def key_of(payload: dict[str, Any]) -> str:
    """The key of a run: 20 hex digits of the SHA-256 of what decides its numbers."""
    return hashlib.sha256(canonical(payload).encode()).hexdigest()[:20]


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """An empty file to write and read, which takes the place of `path` once the block is left without an error.

    Until then it is `<path>.tmp`. The caller holds a lock under which nobody else writes it.
    """
    part = path.with_name(path.name + ".tmp")
    try:
        with part.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. The caller holds a lock under which nobody else writes it."""
    with whole(path) as file:
        file.write(data)


def save_tensors(state: dict[str, Any], file: BinaryIO) -> None:
    """torch.save, with OSError where it cannot write."""
    import torch  # here and wherever the store needs it: only training does, and it takes seconds to import

    try:
        torch.save(state, file)
    except RuntimeError as error:  # how torch reports a disk that filled up under it
        said = str(error).splitlines()[0]
        raise OSError(f"torch could not write all of it, probably for want of room ({said})") from error


@contextmanager
def writes(path: Path) -> Iterator[None]:
    """Turn what the operating system says about writing `path` into what the user can do about it."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}. Make room or make it writable, or set "
            "SWARMBOOK_STORE to another folder, and run the same command again: what is finished is kept and "
            "the rest resumes."
        ) from error
