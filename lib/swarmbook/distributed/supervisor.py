"""What stands in for a lost process: a new one, and what it asks of those that are left.

- `supervise` runs a rank's work in a process of its own; killed or hung, it is replaced by a new one, while the other
  ranks wait in memory (`swarmbook.distributed.communicator`)
- a recovery rule sees the stages of other ranks through a `RemoteStages`: what it fetches is sent to it point to point, and
  nothing else is; meanwhile these ranks `serve` it
"""

import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from swarmbook.distributed.communicator import BEAT, world

if TYPE_CHECKING:
    pass


def supervise(work: Callable[[], int], times: int, timeout: float) -> int:
    """Do `work` in a process of its own, and anew in another one if that is killed or hangs; the exit status.

    At most `times` anew. It hangs when it has given no sign of life for `timeout` seconds. A work that ends with an
    exit status of its own is not repeated. The process is a fork, so this one must not have used a GPU.
    """
    context = multiprocessing.get_context("fork")
    rank, _ = world()
    for life in range(times + 1):
        sign = context.Value("d", math.inf, lock=False)
        process = context.Process(target=_live, args=(work, sign, os.getpid()))
        process.start()
        print(f"rank {rank} is process {process.pid}", flush=True)
        while process.exitcode is None:
            process.join(BEAT)
            if time.monotonic() - sign.value > timeout:
                process.kill()
        if process.exitcode >= 0:
            return process.exitcode
        gone = f"rank {rank}: process {process.pid} was ended by signal {-process.exitcode}"
        print(f"{gone}; {times - life} more may follow it", file=sys.stderr, flush=True)
    return 1


def _live(work: Callable[[], int], sign, parent: int) -> None:
    """PipelineTask, and show that it goes on, as long as there is somebody to see it."""

    def show() -> None:
        while os.getppid() == parent:
            sign.value = time.monotonic()
            time.sleep(BEAT)
        os._exit(1)

    threading.Thread(target=show, daemon=True).start()
    status = work()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a backend that still waits for a lost rank must not hold up the exit
