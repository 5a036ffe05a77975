"""Text of one's own: `file:notes.txt`, `file:posts.jsonl`, `file:posts.jsonl:body` or `dir:folder`.

- A file `.txt` is one document. A row of `.jsonl`, `.json` or `.parquet` is one, in the column `text`, in the only
  column that holds text, or in the one that is named behind a colon. Each may be packed as `.gz` or `.zst`.
- A folder gives all files of these kinds below it, in the order of their names.
- Of 100 documents or more, documents 0, 100, 200, ... are the validation split and 50, 150, 250, ... the test split,
  as with corpora of the hub. Of fewer, the last twentieth of the characters is the validation split and the twentieth
  before it the test split; a document is cut at the end of a line if it has one there. Training reads the rest.
- Texts are identified by their content: a file may be moved, and one that is edited gives runs of their own.

Serves: `data=` of every run, and `-p data file:...` of a notebook that has this parameter.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmbook.data.document_files import READERS, carved, column_of, first_line, reader, stream
from swarmbook.data.source import BATCH, SPLITS
from swarmbook.errors import DataError

if TYPE_CHECKING:
    from datasets import IterableDataset

SCHEMES = ("file:", "dir:")
CUTS = {"train": 0.9, "test": 0.95, "validation": 1.0}  # where each split ends, of the characters of few documents
FEW = 100  # documents, below which some are cut
_FORMAT = 1  # to be raised when the same files give other documents or splits
_KINDS = "/".join(READERS)


@dataclass(frozen=True)
class LocalText:
    """Files that hold texts. column: which holds them, if the source names one."""

    name: str
    files: tuple[Path, ...]
    column: str | None

    name_in_key = "own text"  # which is known by its content and not by its place
    splits = SPLITS
    whole = True
    origin = "text of the user's own"

    @property
    def held_out(self) -> str:
        """Which part of the text is held out, for of few documents and of many it is another."""
        if len(list(itertools.islice(_all_documents(self), FEW))) == FEW:
            return "validation: documents 0, 100, 200, ...; test: documents 50, 150, 250, ..."
        return "validation: the last twentieth of the characters; test: the twentieth before it"

    def content(self) -> str:
        """The bytes of all files in their order, and how they are read."""
        digests = []
        for path in self.files:
            status = path.stat()
            digests.append([reader(path.name), _digest(path, status.st_size, status.st_mtime_ns, status.st_ino)])
        return json.dumps([_FORMAT, self.column, digests])

    def batches(self, split: str) -> Iterator[list[str]]:
        """The documents of a split; DataError names the file, and the line where there are lines."""
        every = documents(self, split)
        return iter(lambda: list(itertools.islice(every, BATCH)), [])

    def texts(self, split: str) -> "IterableDataset":
        """The documents of a split as a `datasets.IterableDataset` with the one column `text`."""
        import datasets

        return datasets.IterableDataset.from_generator(functools.partial(_as_rows, self, split))


def is_local(source: str) -> bool:
    """Whether a source is text of one's own."""
    return source.startswith(SCHEMES)


def absolute(source: Any) -> Any:
    """A source, or several joined with "+", with paths that hold in any folder; anything else as it is."""
    if not isinstance(source, str) or not any(map(is_local, source.split("+"))):
        return source
    named = [part.partition(":") for part in source.split("+")]
    whole = (f"{scheme}:{Path(path).expanduser().absolute()}" for scheme, _, path in named)
    return "+".join(own if is_local(part) else part for part, own in zip(source.split("+"), whole, strict=True))


def local_text(source: str) -> LocalText:
    """The files that a source names; DataError if there are none, or none of a kind that can be read."""
    scheme, _, name = source.partition(":")
    path, column = Path(name).expanduser(), None
    if not path.exists() and ":" in name:
        before, _, column = name.rpartition(":")
        path = Path(before).expanduser()
    if scheme == "dir":
        if not path.is_dir():
            raise DataError(f"{source!r}: there is no folder {path.absolute()}; a single file is named file:{name}")
        files = sorted(each for each in path.rglob("*") if each.is_file() and reader(each.name))
        if not files:
            raise DataError(f"{source!r}: no {_KINDS} file (plain, .gz or .zst) lies below {path.absolute()}")
    else:
        if path.is_dir():
            raise DataError(f"{source!r} is a folder: write dir:{name}")
        if not path.is_file():
            raise DataError(f"{source!r}: there is no file {path.absolute()}; a name with a + must be changed")
        if not reader(path.name):
            raise DataError(f"{source!r} is of no kind that is read here: {_KINDS}, plain, .gz or .zst")
        files = [path]
    return LocalText(source, tuple(files), column)


@functools.cache
def _digest(path: Path, size: int, modified: int, inode: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_rows(wanted: LocalText, split: str) -> Iterator[dict[str, str]]:
    for document in documents(wanted, split):
        yield {"text": document}


def documents(wanted: LocalText, split: str) -> Iterator[str]:
    """The documents of a split, one at a time; DataError names the file, and the line where there are lines."""
    every = _all_documents(wanted)
    few = list(itertools.islice(every, FEW))
    if len(few) == FEW:
        numbered = enumerate(itertools.chain(few, every))
        yield from (document for index, document in numbered if carved(index) == split)
    else:
        found = _by_position(few)[split]
        if not any(text.strip() for text in found):
            size = f"{sum(map(len, few))} characters in {len(few)} documents"
            raise DataError(f"{wanted.name!r} ({split}) has no text: {size} are too little to hold some out; add more")
        yield from found


def _by_position(few: list[str]) -> dict[str, list[str]]:
    """The documents of each split where there are few of them: one split after the other, `CUTS` of the characters."""
    total, begin, found = sum(map(len, few)), 0, {}
    rest = list(few)
    for split, end in CUTS.items():
        wanted, found[split] = round(end * total) - begin, []
        while rest and wanted > 0:
            text = rest.pop(0)
            if len(text) > wanted:
                line = text.find("\n", wanted)
                cut = line + 1 if 0 <= line < wanted + 2000 else wanted  # some line ends soon, or there are none
                text, left = text[:cut], text[cut:]
                rest[:0] = [left] if left else []
            found[split].append(text)
            wanted -= len(text)
            begin += len(text)
    return found


def _all_documents(wanted: LocalText) -> Iterator[str]:
    return (document for path in wanted.files for document in _documents(wanted, path))


def _documents(wanted: LocalText, path: Path) -> Iterator[str]:
    kind = reader(path.name)
    try:
        if kind == "text":
            rows = stream(kind, [str(path)], sample_by="document")
            column = "text"
        else:
            rows = stream(kind, [str(path)])
            form = f"file:{path.name}:COLUMN"
            column = column_of(wanted.column, next(iter(rows), {}), str(path), form)
        for row in rows:
            if not isinstance(row[column], str):
                raise DataError(f"{path}: the column {column!r} holds {row[column]!r} in place of a text: name another")
            yield row[column]
    except DataError:
        raise
    except Exception as error:  # the readers raise what they like
        raise DataError(f"{path} cannot be read: {_damage(path) or first_line(error)}") from error


def _damage(path: Path) -> str:
    """What is wrong with a plain file, with the line; empty where that cannot be told."""
    data = path.read_bytes()
    if data.startswith(b"version https://git-lfs"):
        return "it is a pointer of git LFS; fetch what it stands for with `git lfs pull`"
    if path.suffix not in (".txt", ".jsonl"):
        return ""
    for number, line in enumerate(data.splitlines(), 1):
        try:
            text = line.decode()
            if path.suffix == ".jsonl" and text.strip() and not isinstance(json.loads(text), dict):
                return f"line {number} is no JSON object"
        except UnicodeDecodeError as error:
            return f"line {number} is not UTF-8 ({error.reason}); convert the file, for example with iconv"
        except ValueError as error:
            return f"line {number} is no JSON ({error}); repair or delete it"
    return ""
