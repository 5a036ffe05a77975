"""Computing with machines that nobody can rely on: five papers, alone and in one swarm, over one thin library.

`from swarmbook import RunConfig, grid, run` is enough for most scripts. These names are loaded when they are asked for:
importing the package loads nothing but the standard library.
"""

import importlib
import os

__version__ = "0.1.0"

# Read when torch loads OpenMP: idle threads give up their core after about a microsecond. By default they spin much
# longer, and beside other busy processes each of the many small parallel regions then takes a time slice: on two cores
# with a load of 12, 60 steps of the default model took 6.5 s of CPU in one thread or with this, and 24 s with 10,000.
os.environ.setdefault("GOMP_SPINCOUNT", "100")

_MODULES = {"RunConfig": "config", "run_config": "config", "grid": "config", "run": "runs", "Runs": "results"}
__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> object:
    """The public names, each from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
