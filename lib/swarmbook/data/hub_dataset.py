"""Any data set of the Hugging Face hub: `hub:owner/name[:config][:column][@revision]`.

- `datasets` reads it as its authors laid it out. With a column alone, write `hub:owner/name::column`
- the revision is a commit hash: a name without one is refused, with the newest hash where the hub can be asked, because
  what the name stands for may change. `$SWARMBOOK_HUB_DIR/owner/name/` replaces the network, and needs no revision
- documents are the rows of a column: `text`, the only column of texts, or the one that is named
- training reads the train split, and evaluations the data set's own validation and test splits. Of those that it does
  not have, documents 0, 100, 200, ... of the train split are the validation split and 50, 150, 250, ... the test split

Serves: `data=` of every run.
"""

import hashlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swarmbook.data.document_files import carved, column_of, first_line, hub_folder, sampled_digest
from swarmbook.data.source import BATCH, HASH, SPLITS, TIMEOUT
from swarmbook.errors import DataError

if TYPE_CHECKING:
    from datasets import IterableDataset

FORM = "hub:owner/name[:config][:column][@revision]"


@dataclass(frozen=True)
class HubDataset:
    """A data set of the hub, or a local copy of it. config, column, revision: None where the name has none."""

    name: str
    repository: str
    config: str | None
    column: str | None
    revision: str | None

    splits = SPLITS

    @property
    def name_in_key(self) -> str:
        return self.name

    @property
    def folder(self) -> Path | None:
        """The local copy; None without one."""
        return hub_folder(self.repository)

    @property
    def whole(self) -> bool:
        return self.folder is not None

    @property
    def origin(self) -> str:
        return "of the Hugging Face hub, under the licence given there"

    @property
    def held_out(self) -> str:
        own = self._loaded()
        of = {"validation": "documents 0, 100, 200, ...", "test": "documents 50, 150, 250, ..."}
        parts = (f"{split}: {'its own' if split in own else f'{few} of its train split'}" for split, few in of.items())
        return "; ".join(parts)

    def content(self) -> str:
        """Repository and revision, which need no network, or the content of the files of a local copy."""
        asked = f"{self.config or ''}:{self.column or ''}"
        if self.folder is None:
            return f"{self.repository}@{self._pinned()} {asked}"
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        named = [(path.relative_to(self.folder).as_posix(), path) for path in files]
        shown = [(name, path) for name, path in named if not any(part.startswith(".") for part in name.split("/"))]
        digests = [(name, sampled_digest(path, path.stat().st_size, path.stat().st_mtime_ns)) for name, path in shown]
        return hashlib.blake2b(repr((digests, asked)).encode(), digest_size=16).hexdigest()

    def batches(self, split: str) -> Iterator[list]:
        try:
            for batch in self.texts(split).iter(batch_size=BATCH):
                yield batch["text"]
        except DataError:
            raise
        except Exception as error:  # the readers raise what they like
            raise DataError(f"{self.name!r} ({split}) cannot be read: {first_line(error)}") from error

    def texts(self, split: str) -> "IterableDataset":
        own = self._loaded()
        rows = own[split if split in own else "train"]
        try:
            form = f"hub:{self.repository}:{self.config or ''}:COLUMN"
            column = column_of(self.column, next(iter(rows), {}), repr(self.name), form)
        except Exception as error:  # the readers raise what they like
            raise DataError(f"{self.name!r} ({split}) cannot be read: {first_line(error)}") from error
        if split not in own or (split == "train" and not set(SPLITS) <= set(own)):
            taken = {split} if split not in own else {"train", *own}
            rows = rows.filter(lambda _, index: [carved(i) in taken for i in index], with_indices=True, batched=True)
        rows = rows.select_columns(column)
        return rows if column == "text" else rows.rename_column(column, "text")

    def _loaded(self) -> "dict[str, IterableDataset]":
        """The splits of the data set, as `datasets` finds them. DataError unless one is called train."""
        import datasets

        where, revision = (str(self.folder), None) if self.folder else (self.repository, self._pinned())
        try:
            if not self.folder:
                self._ask(revision)
            with tempfile.TemporaryDirectory() as scratch:  # where a lock file goes even when streaming
                found = datasets.load_dataset(where, self.config, revision=revision, streaming=True, cache_dir=scratch)
        except Exception as error:  # the readers raise what they like
            cure = "" if self.folder else f". Where there is a network, run\n  {self._download()}\nand set it here too"
            raise DataError(f"{self.name!r} cannot be loaded: {first_line(error)}{cure}") from error
        if "train" not in found:
            raise DataError(f"{self.name!r} has no train split but {', '.join(found)}: name another data set or config")
        return dict(found)

    def _ask(self, revision: str | None) -> str:
        """The commit that a revision, or the newest one, is on the hub; listing alone would retry for 20 s offline."""
        from huggingface_hub import HfApi

        return HfApi().dataset_info(self.repository, revision=revision, timeout=TIMEOUT).sha or ""

    def _pinned(self) -> str:
        if self.revision and re.fullmatch(HASH, self.revision):
            return self.revision
        try:
            commit = self._ask(self.revision)
        except Exception:  # offline, or no such data set: what follows says where to look
            commit = ""
        base = self.name.partition("@")[0]
        what = f"revision {self.revision!r} is no commit hash" if self.revision else "it has no revision"
        raise DataError(
            f"{self.name!r}: {what}, and what it stands for may change. Write '{base}@{commit or '<commit hash>'}', "
            + ("its newest commit" if commit else f"with one from https://huggingface.co/datasets/{self.repository}")
            + ", or set SWARMBOOK_HUB_DIR to a folder with a copy"
        )

    def _download(self) -> str:
        target = f"$SWARMBOOK_HUB_DIR/{self.repository}"
        return f"hf download {self.repository} --repo-type dataset --revision {self.revision} --local-dir {target}"


def hub_dataset(name: str) -> HubDataset:
    """The data set that a name means; DataError for one that is not of the form."""
    part = r"[A-Za-z0-9_.-]+"
    found = re.fullmatch(rf"hub:({part}/{part})(?::([^:@]*))?(?::([^:@]+))?(?:@(.+))?", name)
    if not found:
        raise DataError(f"{name!r} is not of the form {FORM}, such as hub:roneneldan/TinyStories::text@<commit hash>")
    repository, config, column, revision = found.groups()
    return HubDataset(name, repository, config or None, column, revision)
