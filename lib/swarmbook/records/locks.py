"""Locks between processes, and who holds them.

- A lock is `flock` on a file. The kernel drops it when its holder dies. Over NFS that needs a server and a client that
  carry locks (Linux does, mounted without `nolock`). A file system without `flock` is refused, not worked around.
- In the file stands which process holds it, on which host and since when. That is told to who waits, and decides
  nothing.
- Anyone can delete the file under its holder, and who comes next makes and locks a new one. So a holder asks
  `Lock.own` before it relies on its lock.

Serves: the store, the token cache, the points of sweeps, and the folders of work that is not finished.
"""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

TELL = 60.0  # seconds between two words on what is waited for


class Lock:
    """A lock that this process holds."""

    def __init__(self, path: Path):
        self.path = path
        self._file: tuple[int, int] | None = None  # device and inode of what is locked

    @property
    def own(self) -> bool:
        """Whether the lock's file is still the one that this process locked, and not a later one of the same name."""
        try:
            status = self.path.stat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._file  # an inode is not used again while it is open

    def taken(self, descriptor: int) -> None:
        """Remember what was locked, and write into it by whom."""
        status = os.fstat(descriptor)
        self._file = status.st_dev, status.st_ino
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        with suppress(OSError):  # on a full disk nothing is told
            os.ftruncate(descriptor, 0)
            os.pwrite(
                descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode(), 0
            )


@contextmanager
def lock(path: Path, blocking: bool = False, what: str | None = "") -> Iterator[Lock | None]:
    """Hold the lock `path`, whose folder is made if need be; None if another process, or this one, holds it.

    The file goes away with the lock. blocking: whether to wait for it. what: what is waited for, as in "tokens of
    stories_toy". If that takes long, it is told who holds it, unless `what` is None: then the caller does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mine: Lock | None = Lock(path)
    file = FileLock(path, thread_local=False, fallback_to_soft=False, on_acquired=mine.taken)
    wait = 1.0  # most locks are held for a moment
    while True:
        try:
            file.acquire(timeout=wait if blocking else 0, poll_interval=0.01)
        except Timeout:
            if blocking:
                if what is not None:
                    tell(what or path.stem, path)
                wait = TELL
                continue
            mine = None
        break
    try:
        yield mine
    finally:
        if mine:
            # Removing the file before the lock is released is safe: FileLock checks, once it has a lock, that the file
            # still has a name, and otherwise tries again. A later file of the same name is another's.
            if mine.own:
                with suppress(OSError):
                    path.unlink()
            file.release()


def holder(path: Path) -> str:
    """Who holds a lock, such as "process 4711 on pc12 (since 2026-11-30 09:12:03+01:00)"."""
    try:
        found = json.loads(path.read_bytes())
        return f"process {found['pid']} on {found['host']} (since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def tell(what: str, path: Path, cure: str = "") -> None:
    """Say that this process waits for something that another one is doing, which holds the lock `path`."""
    cure = cure or f"end that process, or delete {path} if you are sure that it is lost"
    print(
        f"waiting for {what}, which is held by {holder(path)}. To go on without: {cure}.", file=sys.stderr, flush=True
    )
