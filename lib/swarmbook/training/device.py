"""Where a fleet runs: device, precision, memory, and the versions of what computes there.

Serves: every trained run, and its provenance.
"""

import ctypes
import platform

import numpy as np
import torch


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


def environment(device: torch.device) -> dict:
    """What computes, and on what: the part of a run's provenance that does not depend on how it was shared out."""
    cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu ({torch.backends.cpu.get_cpu_capability()})",
        "threads": torch.get_num_threads(),
    }
