"""How a process ends when it is asked to: SIGTERM and SIGHUP unwind it as Ctrl-C does, so that what is begun is tidied.

Serves: every command, and `python -m swarmbook.distributed`.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Terminated(SystemExit):
    """This process was asked to end: by SIGTERM, as batch systems do when a job's time is up, or by SIGHUP, as its
    terminal closed. The code is that of a process which the signal ends, 143 or 129."""

    @property
    def why(self) -> str:
        """The signal's name, such as "SIGTERM"."""
        return signal.Signals(self.code - 128).name


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise Terminated; a second one ends the process at once.

    A signal that is ignored, as under nohup, or has a handler already, is left alone.
    """
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    mine = [s for name in names if signal.getsignal(s := getattr(signal, name)) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        mine = []  # nobody but the main thread may set this

    def end(number: int, _: Any) -> None:
        for each in mine:
            signal.signal(each, signal.SIG_DFL)
        raise Terminated(128 + number)

    for each in mine:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each in mine:
            signal.signal(each, signal.SIG_DFL)


def tell(end: BaseException, also: str = "") -> int:
    """Say in a line that Ctrl-C or a signal ends this process, and `also` what follows from that; the exit status."""
    why = f"ended by {end.why}" if isinstance(end, Terminated) else "interrupted"
    with suppress(OSError):  # after SIGHUP the terminal is gone
        print(f"\n{why}{also}", file=sys.stderr, flush=True)
    return end.code if isinstance(end, Terminated) else 130


def told(work: Callable[[], int], also: str = "") -> int:
    """Do `work` and return its exit status, or that of what ends it, which is told."""
    try:
        with terminable():
            return work()
    except (KeyboardInterrupt, Terminated) as end:
        return tell(end, also)
