"""Where a fleet runs and what is possible there: device, precision, compiler, memory."""

import ctypes
import os
import shutil

import torch

from swarmbook.training.torch_private import has_triton


def device_of(name: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:1" names here; ValueError or RuntimeError if there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r} is unknown: give 'auto', 'cpu', 'cuda' or 'cuda:<number>'")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise RuntimeError(
            f"device={name!r}, but torch {torch.__version__} sees {count} CUDA devices here: "
            "give device='cpu' or 'auto', or install a CUDA build of torch and its driver"
        )
    return device


def precision_of(name: str, device: torch.device) -> str:
    """ "fp32" or "bf16"; "auto" is bf16 on CUDA."""
    if name not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision={name!r} is unknown: give 'auto', 'fp32' or 'bf16'")
    return name if name != "auto" else "bf16" if device.type == "cuda" else "fp32"


def compilable(wanted: bool | str, device: torch.device) -> bool:
    """Whether to compile: as wanted, or with "auto" where a compiler is found."""
    if wanted not in (True, False, "auto"):
        raise ValueError(f"compile={wanted!r} is unknown: give True, False or 'auto'")
    if device.type == "cuda":
        found = has_triton()
    else:
        found = any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))
    if wanted is True and not found:
        raise RuntimeError(
            "compile=True needs a C++ compiler (on CUDA: Triton) and none was found: "
            "install g++, name one in CXX, or give compile=False"
        )
    return found if wanted == "auto" else wanted


def moved(array, device: torch.device) -> torch.Tensor:
    """An array or tensor on the device; to CUDA through pinned memory, so that nobody waits until it has arrived."""
    tensor = torch.as_tensor(array)
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def keep_freed_memory() -> None:
    """Have glibc keep freed blocks: else each step gives its activations back and faults them in again."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, the most it takes
