"""Files that are there whole or not at all, and the spelling of JSON that checksums and keys are taken of."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from swarmbook.errors import StoreError


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


def write(path: Path, content: bytes) -> None:
    """Write under another name, then rename: a reader never sees half a file."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as scratch:
        partial = Path(scratch) / path.name
        partial.write_bytes(content)
        os.replace(partial, path)
