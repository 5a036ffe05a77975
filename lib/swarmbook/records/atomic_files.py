"""Files and folders that are there whole or not at all.

Whatever is written appears under its name by a rename, after all of it is on disk. A writer that is killed leaves
`<name>.<8 hex digits>.tmp` behind, which no reader looks at; `clean` removes it. A folder in which something is made
(`scratch_folder`) is removed by the next process that makes one beside it.

Serves: whatever the library writes (store, token cache, notebooks, pages, exports).
"""

import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

from swarmbook.errors import StoreError

STORE_CURE = (
    "Make room or make it writable, or set SWARMBOOK_STORE to another folder, and run the same command again: what is "
    "finished is kept and the rest resumes."
)


@contextmanager
def whole_file(path: Path, guard: Callable[[], AbstractContextManager] = nullcontext) -> Iterator[BinaryIO]:
    """An empty file to write and read, which takes the place of `path` once the block is left without an error.

    Its name until then is its own, so that writers at the same time do not disturb each other: the last one counts.
    guard: makes a context for what this function itself does to the file system, such as one that explains errors.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with guard():
            file = part.open("x+b")
        with file:
            yield file
            with guard():
                file.flush()
                os.fsync(file.fileno())
        with guard():
            os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def open_regular(path: Path) -> BinaryIO:
    """A file to read. ValueError where a pipe, a device or a folder stands in its place: those can hang who reads."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise ValueError(f"{path} is no regular file")


def read(path: Path) -> bytes:
    """The bytes of a file, as `open_regular` opens it."""
    with open_regular(path) as file:
        return file.read()


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; an OSError names it, also where the system's does not, as of a full disk."""
    try:
        with whole_file(path) as file:
            file.write(data)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder `.partial-*` in `parent`, for what is not finished; it goes away with the block.

    Those of processes that were killed are removed. The living hold a lock beside theirs. On a file system without
    locks all of them stay.
    """
    from swarmbook.records.locks import lock  # here: what only reads has no need of it

    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(".partial-*"):
        with suppress(OSError), lock(left if left.suffix == ".lock" else left.with_name(f"{left.name}.lock")) as dead:
            if dead and left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
    folder = parent / f".partial-{secrets.token_hex(4)}"
    with ExitStack() as held:
        with suppress(OSError):
            held.enter_context(lock(folder.with_name(f"{folder.name}.lock"), blocking=True))
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder of these files, whole or not at all. It must not be there yet, or be empty."""
    with scratch_folder(folder.parent) as scratch:
        part = scratch / folder.name
        part.mkdir()
        for name, content in files.items():
            write(part / name, content)
        os.replace(part, folder)


def clean(path: Path) -> None:
    """Remove what killed writers of `path` left. The caller holds a lock under which nobody else writes it."""
    for part in path.parent.glob(f"{escape(path.name)}.*.tmp"):
        part.unlink(missing_ok=True)


def save_tensors(state: dict[str, Any], file: BinaryIO) -> None:
    """torch.save, with OSError where it cannot write."""
    import torch  # here and wherever the store needs it: only training does, and it takes seconds to import

    try:
        torch.save(state, file)
    except RuntimeError as error:  # how torch reports a disk that filled up under it, and whatever else ends a write
        if isinstance(error.__context__, (KeyboardInterrupt, SystemExit)):
            raise error.__context__ from None
        said = str(error).splitlines()[0]
        raise OSError(f"torch could not write all of it, probably for want of room ({said})") from error


@contextmanager
def writes(path: Path, cure: str = STORE_CURE) -> Iterator[None]:
    """Raise StoreError, which names `path` and the cure, where the operating system refuses to write it."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}. {cure}") from error
