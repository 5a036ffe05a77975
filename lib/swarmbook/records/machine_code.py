"""Compiling functions with numba, and keeping what was compiled if that can be kept.

Serves: the compiled parts of planners, placements and training on a CPU.
"""

import warnings
from collections.abc import Callable

import numba

_told: list[str] = []  # whether it was said that nothing can be kept


def compiled(function: Callable, **options) -> Callable:
    """A function compiled by `numba.njit`, whose machine code is kept beside its file or in NUMBA_CACHE_DIR.

    Where neither can be written, a warning says so once, and each process compiles anew. options: as of numba.njit.
    """
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError as error:  # numba found no folder that it may write to
        if "cannot cache" not in str(error):
            raise
        if not _told:
            _told.append(str(error))
            warnings.warn(
                f"numba cannot keep what it compiles ({error}), which takes a minute in each process: "
                "set NUMBA_CACHE_DIR to a folder that can be written",
                stacklevel=2,
            )
        return numba.njit(function, **options)
