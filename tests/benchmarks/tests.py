"""What each file of tests takes: seconds of CPU time, with all processes that it starts.

    python tests/benchmarks/tests.py                          # all files and notebooks, an hour
    python tests/benchmarks/tests.py tests/test_sync.py ...   # some, in this order

Each file runs in a pytest of its own, with one thread a process as on two busy cores, and pays for its imports. The
total is a bound: a worker of pytest-xdist pays for them once. Processes that outlive their parents, such as the one
that `tests/forks.py` forks, are counted when they have ended (Linux). It is a benchmark, not a test.
"""

import ctypes
import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHILD_SUBREAPER = 36  # of prctl: orphans become children of this process


def main() -> int:
    ctypes.CDLL(None).prctl(CHILD_SUBREAPER, 1, 0, 0, 0)
    os.environ["OMP_NUM_THREADS"] = "1"
    files = sys.argv[1:] or [*sorted(ROOT.glob("papers/*/*.ipynb")), *sorted(ROOT.glob("tests/test_*.py"))]
    failed, total = 0, 0.0
    for path in files:
        command = [sys.executable, "-m", "pytest", "-n", "0", "-q", path]
        tests, statuses = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), {}
        with suppress(ChildProcessError):  # all have ended
            while True:
                process, status = os.waitpid(-1, 0)
                statuses[process] = os.waitstatus_to_exitcode(status)
        tests.returncode = statuses[tests.pid]
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        before, total = total, used.ru_utime + used.ru_stime
        failed += tests.returncode != 0
        print(f"{Path(path).name:44} {total - before:7.1f} {'failed' * (tests.returncode != 0)}", flush=True)
    print(f"{'all':44} {total:7.1f}")
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
