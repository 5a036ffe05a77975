"""What `forks` loads before it forks: torch, the library with its compiled kernels, and what draws in a notebook."""

import forks  # noqa: F401
import ipykernel.kernelapp  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import numpy as np

import swarmbook.distributed.__main__  # noqa: F401
import swarmbook.reproduction.kernel  # noqa: F401
import swarmbook.runs  # noqa: F401
from swarmbook.training import cpu_kernels, cpu_layers

x = np.ones((1, 1, 1), np.float32)
cpu_kernels.norm(x, x[0], cpu_layers.EPS, x)  # the first kernel makes numba ready for all
