"""Files of documents: what is read by which reader of `datasets`, and which documents are held out.

Serves: corpora of the hub and text of one's own.
"""

import glob
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


def first_line(error: Exception) -> str:
    """What an error says, cut to one line; its kind if it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__
