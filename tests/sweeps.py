"""Sweeps as processes of their own, for tests that kill them: what belongs to one, and what comes of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest

from swarmbook.records.store import Store

PATIENCE = 300  # seconds until a test gives up; one that passes takes a small part of it
linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in Linux's /proc")


def surroundings(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a sweep that keeps its store in a folder."""
    folder.mkdir(exist_ok=True)
    return os.environ | {"SWARMBOOK_STORE": str(folder / "store"), "SWARMBOOK_FRESH": ""} | more


def start(folder: Path, *arguments: str, environment: dict[str, str] | None = None, **options) -> subprocess.Popen:
    """`swarmbook sweep` at the smallest profile, with store and points in a folder."""
    command = [sys.executable, "-m", "swarmbook", "sweep", "--profile", "smoke", "--output", folder / "sweeps"]
    return subprocess.Popen(
        [*command, *arguments],
        env=environment or surroundings(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        **options,
    )  # fmt: skip


def said(process: subprocess.Popen, status: int = 0, patience: float = PATIENCE) -> str:
    """What a process printed until its end."""
    text = process.communicate(timeout=patience)[0]
    assert process.returncode == status, text
    return text


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)


def processes(folder: Path) -> list[int]:
    """Processes that have a folder's store in their environment: whatever was started for its sweeps."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"SWARMBOOK_STORE={folder / 'store'}\0".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def kill_all(process: subprocess.Popen, folder: Path) -> None:
    """SIGKILL for a sweep and whatever it started, workers and kernels included."""
    for blow in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none sees another die
        for victim in processes(folder):
            with suppress(ProcessLookupError):
                os.kill(victim, blow)
    process.communicate(timeout=PATIENCE)
    until(lambda: not processes(folder), "the end of all that was killed")


def notebooks(folder: Path) -> dict[str, list]:
    """By path the outputs of all notebooks of a folder's sweeps, but for progress bars."""
    shown = {}
    for path in sorted(folder.glob("sweeps/*/**/*.ipynb")):
        outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
        outputs = [output for output in outputs if output.get("name") != "stderr"]
        shown[str(path.relative_to(folder))] = json.loads(json.dumps(outputs))
    return shown


def records(folder: Path) -> dict:
    """By key the runs and tables in a folder's store."""
    store = Store(folder / "store")
    return {path.stem: store.get(path.stem) for path in sorted(store.root.glob("*.parquet"))}
