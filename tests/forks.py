"""Python processes that tests start, as forks of one that has torch and the library loaded.

It takes 2.5 s of CPU time to load them and to make the kernels of layers ready for a first step, and 0.5 s to load what
draws figures in a notebook. One process does that for all tests of a worker of pytest (`tests/preloaded.py`).
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any
from unittest import mock

from jupyter_client import launcher


class Fork:
    """`python -c CODE ...` or `python -m MODULE ...` in a fork, with a part of what `subprocess.Popen` does.

    Output and errors go to files that are open, or both to a pipe of text, `stdout`. A fork has its own copies of
    modules, a session of its own, and the environment that it is given, but for what was read at loading.
    """

    stdin = stderr = None

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], cwd: os.PathLike | None = None, streams: Sequence[IO] = ()
    ) -> None:
        assert command[0] == sys.executable and command[1] in ("-c", "-m"), command
        here = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["preloaded"])
        ends, self.stdout = [Connection(os.dup(stream.fileno()), readable=False) for stream in streams], None
        if not streams:
            reader, writer = os.pipe()
            ends, self.stdout = [Connection(writer, readable=False)] * 2, os.fdopen(reader, encoding="utf-8")
        begun, begins = context.Pipe(duplex=False)
        self.process = context.Process(
            target=_work, args=(command[1:], dict(env), cwd or os.getcwd(), ends, begins), daemon=True
        )
        with mock.patch.dict(os.environ, {"PYTHONPATH": here, "OMP_NUM_THREADS": "1"}):
            self.process.start()
        self.pid = self.process.pid
        for end in {*ends, begins}:
            end.close()
        with suppress(EOFError):
            begun.recv()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        said = self.stdout.read() if self.stdout and not self.stdout.closed else ""
        self.wait(timeout)
        return said, None

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout)
        if self.stdout:
            self.stdout.close()
        return self.process.exitcode

    def send_signal(self, which: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, which)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Fork":
        return self

    def __exit__(self, *_) -> None:
        self.wait()


def kernel(command: Sequence[str], *, env: Mapping[str, str], **more: Any) -> Fork | subprocess.Popen:
    """What jupyter_client calls to start a kernel; one that shares the streams of pytest is started as always."""
    if more.get("stdout") is None:
        return launcher.launch_kernel(list(command), env=dict(env), **more)
    return Fork(command, env, more.get("cwd"), (more["stdout"], more["stderr"]))


def _work(
    command: Sequence[str],
    environment: Mapping[str, str],
    cwd: str,
    ends: Sequence[Connection],
    begins: Connection,
) -> None:
    kind, what, *arguments = command
    multiprocessing.current_process()._config["daemon"] = False  # it may have processes of its own
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    tempfile.tempdir = None
    if backend := environment.get("MPLBACKEND"):  # else read when matplotlib is loaded
        sys.modules["matplotlib"].rcParams["backend"] = backend
    for stream, end in zip((1, 2), ends, strict=True):
        os.dup2(end.fileno(), stream)
    for end in {*ends}:
        end.close()
    begins.send("")
    begins.close()
    sys.argv = [kind, *arguments]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
