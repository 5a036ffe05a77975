"""Where things lie: papers, corpora, results and caches. A variable of the environment moves each of them.

What is only read lies in the clone if the library is used from one (an editable installation), else in the package
itself: a wheel carries notebooks and corpora in `swarmbook/share`. What is written goes to `runs/` in the
clone, else in the current directory.

Serves: every command and notebook.
"""

import errno
import os
from functools import cache
from pathlib import Path

CLONE = Path(__file__).parents[2]  # the repository, if this is one
SHARE = Path(__file__).parent / "share"  # what a wheel carries of `papers/` and `data/`


@cache
def home() -> Path:
    """The folder that holds `papers/` and `data/`: the clone if there is one, else the package's own."""
    is_clone = (CLONE / "papers").is_dir() and (CLONE / "data" / "card.json").is_file()
    return CLONE if is_clone else SHARE


def papers_folder() -> Path:
    """The notebooks and what is recorded beside them: SWARMBOOK_PAPERS, or `papers/` of the clone or package."""
    return Path(os.environ.get("SWARMBOOK_PAPERS") or home() / "papers").absolute()


def data_folder() -> Path:
    """The embedded corpora: SWARMBOOK_DATA, or `data/` of the clone or package."""
    return Path(os.environ.get("SWARMBOOK_DATA") or home() / "data")


def recorded_folders(recorded: str | Path | None = None) -> list[Path]:
    """Where recorded runs lie: the folder that is given, or by default those of all papers, `papers/*/runs`."""
    return [each / "runs" for each in sorted(papers_folder().glob("*/"))] if recorded is None else [Path(recorded)]


def runs_folder(papers: Path | None = None) -> Path:
    """Where results go: `runs/` beside a folder of papers, or in the current directory if it is the package's own.

    papers: by default `papers_folder()`.
    """
    papers = papers_folder() if papers is None else papers
    return (Path.cwd() if papers.parent == SHARE else papers.parent) / "runs"


def store_folder() -> Path:
    """Where finished runs are kept: SWARMBOOK_STORE, or `store` in the `runs_folder` of the clone or package."""
    return Path(os.environ.get("SWARMBOOK_STORE") or runs_folder(home() / "papers") / "store").absolute()


def cache_folder() -> Path:
    """Where derived files are kept: SWARMBOOK_CACHE, or `swarmbook` in the user's cache folder.

    Raises FileNotFoundError for a user without a home folder, as there are in containers.
    """
    if named := os.environ.get("SWARMBOOK_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swarmbook"
    except RuntimeError as error:
        cure = "there is no home folder: set SWARMBOOK_CACHE to a folder for tokens"
        raise FileNotFoundError(errno.ENOENT, cure) from error
