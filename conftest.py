"""nbval, which executes the committed notebooks, takes as equal what `swarmbook verify` takes as equal."""

import pytest

from swarmbook.reproduction.publishing import stable


def pytest_configure(config: pytest.Config) -> None:
    """nbval replaces what varies between executions in text alone; claims are JSON, whose texts vary as well."""
    if config.pluginmanager.has_plugin("nbval"):
        from nbval.plugin import IPyNbCell

        IPyNbCell.sanitize = lambda cell, shown: stable(shown, cell.parent.sanitize_patterns.items())
