"""Where things lie: papers, corpora, runs and caches; each place can be moved by a variable of the environment."""

import os
from pathlib import Path

CLONE = Path(__file__).parents[2]  # the repository, where this is an editable installation


def papers_folder() -> Path:
    """The notebooks and what is recorded beside them: SWARMBOOK_PAPERS, or `papers/` of the clone."""
    return Path(os.environ.get("SWARMBOOK_PAPERS") or CLONE / "papers").absolute()


def data_folder() -> Path:
    """The embedded corpora: SWARMBOOK_DATA, or `data/` of the clone."""
    return Path(os.environ.get("SWARMBOOK_DATA") or CLONE / "data")


def store_folder() -> Path:
    """Where finished runs are kept: SWARMBOOK_STORE, or `runs/store` in the clone."""
    return Path(os.environ.get("SWARMBOOK_STORE") or CLONE / "runs" / "store")


def cache_folder() -> Path:
    """Where derived files are kept: SWARMBOOK_CACHE, or `swarmbook` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swarmbook"
    return Path(os.environ.get("SWARMBOOK_CACHE") or default)
