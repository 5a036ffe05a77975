"""Caches that cannot be written are done without, and one warning names the variable to set.

The token cache has its tests in `test_data.py`. Each case runs in a process of its own, as a user's first command.
"""

import os
import subprocess
import sys
from pathlib import Path

LIBRARY = Path(__file__).parents[1] / "lib"


def said(script, **environment):
    """What a script printed, and its warnings, line by line."""
    env = {**os.environ, "PYTHONPATH": str(LIBRARY), **{name: str(value) for name, value in environment.items()}}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), [line for line in done.stderr.splitlines() if "Warning" in line]


NUMBA = """
import numba.core.caching
numba.core.caching.CacheImpl._locator_classes = []  # what a read-only clone and home come to, also for root
import numpy as np
from swarmbook.planning import jobshop
from swarmbook.planning.placement_annealing import bottleneck_rank
ranks = np.array([[0, 3], [3, 0]])
print(bottleneck_rank(ranks, np.array([0]), np.array([1]), 5))
"""


def test_planning_works_where_numba_can_keep_nothing(tmp_path):
    printed, warned = said(NUMBA)
    assert printed == ["3"]
    (warning,) = warned
    assert "cannot cache function" in warning and "set NUMBA_CACHE_DIR to a folder that can be written" in warning


INDUCTOR = """
import torch
from swarmbook.training.compilation import Compiled, find_room
for _ in range(2):
    find_room()
print(Compiled(lambda x: 2 * x + 1)(torch.ones(3)).sum().item())
"""


def test_layers_are_compiled_where_torch_can_keep_nothing(tmp_path):
    (tmp_path / "file").touch()
    scalar = {"TORCHINDUCTOR_VEC_ISA_OK": "0"}  # else torch compiles programs that ask what this processor can do
    printed, warned = said(INDUCTOR, TORCHINDUCTOR_CACHE_DIR=tmp_path / "file" / "cache", TMPDIR=tmp_path, **scalar)
    assert printed == ["9.0"]
    (warning,) = [line for line in warned if "torch cannot keep" in line]
    assert "file/cache" in warning and "set TORCHINDUCTOR_CACHE_DIR to a folder that can be written" in warning
    assert not list(tmp_path.glob("swarmbook-*"))  # it went away with the process


MATPLOTLIB = "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.savefig('/dev/null', format='png'); print('drawn')"


def test_figures_are_drawn_where_matplotlib_can_keep_nothing(tmp_path):
    """Matplotlib does this by itself."""
    (tmp_path / "file").touch()
    env = {**os.environ, "MPLCONFIGDIR": str(tmp_path / "file" / "matplotlib"), "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, "-c", MATPLOTLIB], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout == "drawn\n" and "MPLCONFIGDIR" in done.stderr
