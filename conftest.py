"""pytest works from any folder: nbval would look for its file of patterns in the current one."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if patterns := config.getoption("nbval_sanitize_with", None):
        config.option.nbval_sanitize_with = str(config.rootpath / patterns)
