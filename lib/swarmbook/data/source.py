"""What a kind of source of texts has to know: its splits, what identifies it, and its documents.

The kinds are embedded domains (`swarmbook.data.corpora`), the corpora of the papers on the hub (`swarmbook.data.hub`),
any other data set of the hub (`swarmbook.data.hub_dataset`) and text of one's own (`swarmbook.data.local_text`).
`swarmbook.data.tokenization.source_of` makes one from its name.

Serves: every run that trains.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SPLITS = ("train", "validation", "test")
BATCH = 1024  # documents at a time
HASH = r"[0-9a-f]{40}"  # of a commit of the hub
TIMEOUT = 5.0  # seconds for the hub's first answer


class Source(Protocol):
    """One text that runs read. All methods raise DataError, which names the file and the remedy.

    name: as it stands in `RunConfig.data`. name_in_key: as it stands in a run's key, beside `content`. splits: the
    names of its splits. whole: whether it is short enough to be read to its end. origin: where it is from, and under
    which licence. held_out: in words, what the validation and test splits are.
    """

    name: str

    @property
    def name_in_key(self) -> str: ...

    @property
    def splits(self) -> tuple[str, ...]: ...

    @property
    def whole(self) -> bool: ...

    @property
    def origin(self) -> str: ...

    @property
    def held_out(self) -> str: ...

    def content(self) -> str:
        """What identifies the documents of all splits."""

    def batches(self, split: str) -> Iterator[list]:
        """The documents of a split, some at a time; blank ones and what is no text among them."""

    def texts(self, split: str) -> "Dataset | IterableDataset":
        """The documents of a split in a column `text`."""
