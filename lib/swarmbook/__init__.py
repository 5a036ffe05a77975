"""Computing with machines that nobody can rely on: five papers over one thin library."""

import os

__version__ = "0.1.0"

# Read when torch loads OpenMP: idle threads sleep. Spinning, they would hold up a second process on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
