"""Python processes that tests start, as forks of one that has torch and the library loaded.

It takes 2.5 s of CPU time to load them and to make the kernels ready for a first step. One process does that, for all
tests of a worker of pytest, and takes commands after it.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

PRELOADED = "preloaded"  # the module of tests/preloaded.py


class Fork:
    """`python -c CODE ...` or `python -m MODULE ...` in a fork, with a part of what `subprocess.Popen` does.

    Its standard output is a pipe of text, which its errors join. It has its own copies of modules, and sees the
    environment that it is given, but for what was read when the library was loaded.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        assert command[0] == sys.executable and command[1] in ("-c", "-m"), command
        here = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([PRELOADED])
        reader, writer = os.pipe()
        self.stdout = os.fdopen(reader, encoding="utf-8")
        with mock.patch.dict(os.environ, {"PYTHONPATH": here, "OMP_NUM_THREADS": "1"}):
            end = Connection(writer, readable=False)
            self.process = context.Process(target=_work, args=(command[1:], dict(env), end))
            self.process.start()
            end.close()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    poll = returncode.fget

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        said = self.stdout.read() if not self.stdout.closed else ""
        self.wait(timeout)
        return said, None

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout)
        self.stdout.close()
        return self.process.exitcode

    def __enter__(self) -> "Fork":
        return self

    def __exit__(self, *_) -> None:
        self.wait()


def _work(command: Sequence[str], environment: Mapping[str, str], output: Connection) -> None:
    kind, what, *arguments = command
    os.environ.clear()
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    sys.stdout.reconfigure(line_buffering=False)
    sys.argv = [kind, *arguments]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
