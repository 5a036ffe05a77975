"""Files of documents: what is read by which reader of `datasets`, and which documents are held out.

Serves: corpora of the hub and text of one's own.
"""

import functools
import glob
import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import IterableDataset

CARVE = {"validation": 0, "test": 50}  # document index modulo 100
READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".txt": "text"}


def reader(name: str) -> str | None:
    """The reader of `datasets` for a file, by its name; None for kinds that are not read."""
    return READERS.get(Path(re.sub(r"\.(gz|zst)$", "", name)).suffix)


def stream(kind: str, names: list[str], **options: Any) -> "IterableDataset":
    """The rows of files, one after another. Their names are taken as they are: `datasets` reads them as patterns.

    options: of the reader of `datasets`, such as sample_by of "text".
    """
    import datasets

    named = [glob.escape(name) for name in names]
    with tempfile.TemporaryDirectory() as scratch:  # load_dataset drops a lock file there even when streaming
        options |= {"data_files": named, "split": "train", "streaming": True, "cache_dir": scratch}
        return datasets.load_dataset(kind, **options)


def carved(index: int) -> str:
    """The split of a document, by its index, where a data set has only a train split."""
    return next((split for split, remainder in CARVE.items() if index % 100 == remainder), "train")


def column_of(wanted: str | None, row: dict, where: str, form: str) -> str:
    """The column that holds the texts: the wanted one, "text", or the only one that holds a text in the first row.

    where, form: the place, and how to name a column of it, for the ValueError that names the columns.
    """
    texts = [name for name, value in row.items() if isinstance(value, str)]
    column = wanted or ("text" if "text" in row or len(texts) != 1 else texts[0])
    if row and column not in row:
        raise ValueError(f"{where} has no column {column!r} but {', '.join(row)}: write {form}")
    return column


def first_line(error: Exception) -> str:
    """What an error says, cut to one line; its kind if it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def hub_folder(repository: str) -> Path | None:
    """The local copy of a repository of the hub; None without one."""
    folder = os.environ.get("SWARMBOOK_HUB_DIR")
    return Path(folder, repository) if folder and Path(folder, repository).is_dir() else None


@functools.cache
def sampled_digest(path: Path, size: int, modified: int) -> str:
    """A digest of a file's size and content; above 1 MiB of 8 blocks of 16 KiB."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        if size <= 1 << 20:
            digest.update(file.read())
        else:
            for block in range(8):
                file.seek((size - (16 << 10)) * block // 7)
                digest.update(file.read(16 << 10))
    return digest.hexdigest()
