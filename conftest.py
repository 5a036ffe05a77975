"""nbval, which executes the committed notebooks, works from any folder and compares as `swarmbook verify` does."""

import pytest

from swarmbook.reproduction.publishing import stable


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
