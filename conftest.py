"""nbval, which executes the committed notebooks, works from any folder and compares as `swarmbook verify` does.

Of the tests, what takes longest begins first.
"""

import pytest

from swarmbook.reproduction.publishing import stable

# Files that take more than some 20 s of CPU time, the longest first (tests/benchmarks/tests.py). All others follow as
# they are found. The order decides nothing but how long one process works at the end while others have nothing to do.
LONGEST = [
    "test_notebooks.py", "test_distributed.py", "test_sweep.py", "test_verify.py", "test_cli.py", "test_runs.py",
    "test_reproduction.py", "test_endings.py", "test_profiles.py", "test_sync.py", "test_fuzz.py", "test_packaging.py",
    "test_payments_model_checking.py", "test_bounds.py", "test_lineage.py", "test_reading.py", "test_report.py",
    "test_data.py", "test_store.py", "test_planner.py", "skippipe.ipynb",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files stay together, in an order that pytest-xdist keeps (--no-loadscope-reorder)."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))
    for item in items:
        if hasattr(item, "output_timeout"):  # nbval's 5 s are over sooner than a busy machine has sent a large figure
            item.output_timeout = 600


def pytest_configure(config: pytest.Config) -> None:
    """Give nbval the path of its patterns from wherever pytest runs, and let it replace what varies in claims, too.

    nbval itself replaces what varies between executions in text alone; claims are JSON, whose texts vary as well.
    """
    if not config.pluginmanager.has_plugin("nbval"):
        return
    from nbval.plugin import IPyNbCell

    if config.inipath and (patterns := config.getoption("nbval_sanitize_with")):
        config.option.nbval_sanitize_with = str(config.inipath.parent / patterns)
    IPyNbCell.sanitize = lambda cell, shown: stable(shown, cell.parent.sanitize_patterns.items())
