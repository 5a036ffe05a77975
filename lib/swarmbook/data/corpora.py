"""The embedded corpora: their card, and the checked files of their texts.

A domain is one corpus, `data/<name>.parquet`, with a line on `data/card.json`. Its kind says what it is for: training,
the seed models of HDEE, evaluation only, or the toy corpus of tests and examples.

Serves: every run that trains, and the domains of HDEE.
"""

import functools
import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swarmbook.data.source import BATCH, SPLITS
from swarmbook.errors import DataError, unknown
from swarmbook.locations import data_folder

if TYPE_CHECKING:
    from datasets import Dataset

KINDS = ("train", "seed", "evaluation", "toy")
DIFFICULTIES = ("easy", "middle", "hard")


@dataclass(frozen=True)
class Domain:
    """An embedded domain as a source of texts. DataError for an unknown name."""

    name: str

    splits = SPLITS
    whole = True
    held_out = "validation and test: documents of their own, as data/README.md says"

    def __post_init__(self):
        card(self.name)

    @property
    def name_in_key(self) -> str:
        return self.name

    @property
    def origin(self) -> str:
        found = card(self.name)
        return f"{found['title']}, {found['licence']}"

    def content(self) -> str:
        """The checksum of its file."""
        return checked_file(self.name)[1]

    def batches(self, split: str) -> Iterator[list]:
        column = read_split(self.name, split).column("text")  # without `datasets`, whose import costs a second
        return (column.slice(first, BATCH).to_pylist() for first in range(0, len(column), BATCH))

    def texts(self, split: str) -> "Dataset":
        """The documents of a split as a `datasets.Dataset` in memory."""
        import datasets

        return datasets.Dataset(read_split(self.name, split))


def domains(kind: str | None = None, difficulty: str | None = None) -> list[str]:
    """The names of the embedded domains in the order of the card; of one of KINDS or DIFFICULTIES if that is given."""
    check_known("kind", kind, (None, *KINDS))
    check_known("difficulty", difficulty, (None, *DIFFICULTIES))
    return [
        entry["name"]
        for entry in _cards().values()
        if kind in (None, entry["kind"]) and difficulty in (None, entry["difficulty"])
    ]


def card(name: str) -> dict:
    """What the card says of a domain: kind, difficulty, origin, licence, sizes by split, checksum.

    Raises DataError for an unknown name, and where there is no card.
    """
    cards = _cards()
    check_known("domain", name, cards)
    return {**cards[name]}


def check_known(what: str, name, valid: Collection) -> None:
    """Raise DataError, which names the nearest valid name, for a name that is not among the valid ones."""
    if name in valid:
        return
    raise DataError(unknown(what, name, [str(known) for known in valid if known is not None]))


def _cards() -> dict[str, dict]:
    """The entries of the card by name, in its order."""
    path = data_folder() / "card.json"
    try:
        return _parsed(path, *version(path))
    except FileNotFoundError:
        raise DataError(f"no corpora in {data_folder()}: card.json is missing; set SWARMBOOK_DATA") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is damaged ({error}); restore it with git") from error


def version(path: Path) -> tuple[int, int, int]:
    """What changes with a file: its size, the time of its last change, and its inode."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, *version: int) -> dict[str, dict]:
    return {entry["name"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))}


def checked_file(name: str) -> tuple[Path, str]:
    """The parquet file of an embedded domain and its sha256, which must be the one on its card."""
    path = data_folder() / f"{name}.parquet"
    expected = card(name)["sha256"]
    if not path.is_file():
        cure = "restore it with git, or set SWARMBOOK_DATA to the folder data of a clone"
        raise DataError(f"{path} is missing although card.json lists {name!r}; {cure}")
    found = _sha256(path, *version(path))
    if found != expected:
        raise DataError(
            f"{path} has sha256 {found}, its card says {expected}; restore it with git or correct card.json"
        )
    return path, found


@functools.cache
def _sha256(path: Path, *version: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_split(name: str, split: str):
    """A split of an embedded domain as a pyarrow Table, one row a document."""
    from pyarrow import parquet

    return parquet.read_table(checked_file(name)[0], filters=[("split", "==", split)], use_threads=False)
