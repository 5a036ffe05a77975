"""A new process in place of a rank's process that was killed or hangs.

The other ranks wait for it in memory meanwhile (`swarmbook.distributed.communicator`).

Serves: `python -m swarmbook.distributed --replace`.
"""

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from swarmbook.distributed.communicator import BEAT, world
from swarmbook.endings import tell


def supervise(work: Callable[[], int], times: int, timeout: float) -> int:
    """Do `work` in a process of its own, and again in a new one if that is killed or hangs; gives the exit status.

    times: how often at most it is done again. timeout: seconds without a sign of life after which a process hangs. A
    process that ends with an exit status of its own is not replaced. Processes are forks, so this one must not have
    used a GPU.
    """
    context = multiprocessing.get_context("fork")
    rank, _ = world()
    for life in range(times + 1):
        sign = context.Value("d", math.inf, lock=False)
        process = context.Process(target=_live, args=(work, sign, os.getpid()))
        process.start()
        print(f"rank {rank} is process {process.pid}", flush=True)
        try:
            while process.exitcode is None:
                process.join(BEAT)
                if time.monotonic() - sign.value > timeout:
                    process.kill()
        except BaseException:  # this one is asked to end
            process.kill()
            raise
        if process.exitcode >= 0:
            return process.exitcode
        gone = f"rank {rank}: process {process.pid} was ended by signal {-process.exitcode}"
        print(f"{gone}; {times - life} more may follow it", file=sys.stderr, flush=True)
    return 1


def _live(work: Callable[[], int], sign, parent: int) -> None:
    """Do the work, and write the time to `sign` now and then; end when the `parent` process has ended."""

    def show() -> None:
        while os.getppid() == parent:
            sign.value = time.monotonic()
            time.sleep(BEAT)
        os._exit(1)

    for name in ("SIGTERM", "SIGHUP"):  # one that is ended is lost, and may be replaced
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    threading.Thread(target=show, daemon=True).start()
    try:
        status = work()
    except KeyboardInterrupt as end:
        status = tell(end)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a backend that still waits for a lost rank must not hold up the exit
