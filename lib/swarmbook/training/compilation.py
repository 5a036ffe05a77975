"""Whether and how the layers of a fleet on CUDA are compiled. On a CPU, `swarmbook.training.cpu_layers` does without.

Serves: long runs, which repay a compilation (`swarmbook.training.packing.COMPILE_FLOPS`).
"""

import atexit
import getpass
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from swarmbook.training.torch_private import compiled, has_triton


def compilable(wanted: bool | str, device: torch.device) -> bool:
    """Whether to compile: as wanted, or with "auto" on CUDA where there is a Triton."""
    if wanted not in (True, False, "auto"):
        raise ValueError(f"compile={wanted!r} is unknown: give True, False or 'auto'")
    found = device.type == "cuda" and has_triton()
    if wanted is True and not found:
        raise RuntimeError(
            f"compile=True needs CUDA and Triton, which are not there for device={str(device)!r}: "
            "give compile='auto' or False; layers on a CPU are compiled without it"
        )
    compiles = found if wanted == "auto" else wanted
    if compiles:
        find_room()
    return compiles


def find_room() -> None:
    """Where the compiler cannot write to its folder, give it one that goes away with this process, and say so."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if not folder:
        try:
            folder = os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
        except (KeyError, OSError):  # a user without a name, for whom torch takes the number
            return
    try:  # torch itself would fail in being imported
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        own = tempfile.mkdtemp(prefix="swarmbook-")
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = own
        warnings.warn(
            f"torch cannot keep what it compiles in {folder} ({error.strerror}), and compiles anew in each process: "
            "set TORCHINDUCTOR_CACHE_DIR to a folder that can be written",
            stacklevel=3,
        )


class Compiled:
    """A pure function over tensors, compiled anew for each combination of sizes that it meets.

    Inductor without torch.compile's guards, which at the sizes of a laptop would cost a tenth of each step.
    """

    def __init__(self, function: Callable):
        self.function = function
        self.compiled: dict[tuple, Callable] = {}

    def __call__(self, *arguments):
        key = tuple((a.shape, a.stride()) if isinstance(a, Tensor) else a for a in arguments)
        if key not in self.compiled:
            self.compiled[key] = self._compile(arguments)
        return self.compiled[key](*(a for a in arguments if isinstance(a, Tensor)))

    def _compile(self, arguments: tuple) -> Callable:
        """The function for arguments of these sizes; what is no tensor stays as it is here."""

        def of_tensors(*tensors):
            rest = iter(tensors)
            return self.function(*(next(rest) if isinstance(a, Tensor) else a for a in arguments))

        tensors = [a for a in arguments if isinstance(a, Tensor)]
        return compiled(of_tensors, tensors)  # the key holds their shapes and strides
