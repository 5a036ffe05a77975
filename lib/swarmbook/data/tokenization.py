"""From texts to tokens: tokenizers, and the cache that keeps the tokens of a source.

- A source is of one of the kinds that `swarmbook.data.source` lists, or several joined with "+", which are
  concatenated in their order.
- An end-of-text token closes each document, and documents are concatenated.
- Tokens are made once and kept as a memory map in SWARMBOOK_CACHE. They are identified by the content of texts and
  tokenizer alone, in the name of the file and inside it. Where nothing can be kept, each process makes its own.
- Tokenizers, sources and cache meet in `tokens`, and so are in one file.

Serves: every run that trains.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from swarmbook.data import hub, hub_dataset, local_text
from swarmbook.data.batches import Tokens
from swarmbook.data.corpora import Domain, check_known, version
from swarmbook.data.document_files import first_line
from swarmbook.data.source import Source
from swarmbook.errors import DataError
from swarmbook.locations import cache_folder, data_folder
from swarmbook.records.atomic_files import clean, open_regular, whole_file
from swarmbook.records.locks import lock

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from tokenizers import Tokenizer

FORMAT = 1  # of the token cache; to be raised whenever the same texts give other ids or another layout

_HEADER_BYTES = 256
_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>")  # ours, Llama 3, Llama 2
_WHOLE = 256 << 20  # bytes: token caches above this are checked in 256 blocks of 1 MiB
_verified: set[tuple] = set()  # files whose checksum this process has compared
_unkept: dict[Path, np.ndarray] = {}  # tokens that could not be written, by the file that they should be in
_told: set[Path] = set()  # cache folders that cannot be used, and of which that was said


class _Unwritable(Exception):
    """The cache folder cannot be used."""


def tokenizer(name: str = "swarmbook") -> "Tokenizer":
    """A tokenizer by its name.

    "swarmbook" is the embedded one. "bytes" has the 256 bytes and the end of a text, for the smallest of models. A name
    that ends in `.json` is the path of a file. Others are of the hub: `llama-2` (CheckFree's), `llama-3` (HDEE's) or
    `<owner>/<name>@<commit hash>`. Raises DataError for a tokenizer that is unknown or cannot be had.
    """
    return _tokenizer(_tokenizer_bytes(name))


def vocabulary_of(coder: "Tokenizer") -> int:
    """One more than the largest id, which in a vocabulary with holes is more than the number of its tokens."""
    return max(coder.get_vocab().values(), default=-1) + 1


def vocabulary(name: str = "swarmbook") -> int:
    """`vocabulary_of` the tokenizer of this name, whose file is parsed once."""
    return _vocabulary(_tokenizer_bytes(name))


@functools.lru_cache(maxsize=8)
def _vocabulary(content: bytes) -> int:
    return vocabulary_of(_tokenizer(content))


def end_of_text(coder: "Tokenizer") -> int:
    """The id of the token that closes each document; raises DataError if the tokenizer has none that we know."""
    end = next((coder.token_to_id(token) for token in _END_OF_TEXT if coder.token_to_id(token) is not None), None)
    if end is None:
        raise DataError(f"the tokenizer has none of the end-of-text tokens {', '.join(_END_OF_TEXT)}; add one to it")
    return end


def tokens(source: str, split: str, tokenizer: str = "swarmbook", limit: int | None = None) -> Tokens:
    """The tokens of a split, which are made on the first call and read from the cache afterwards.

    limit: how many tokens to keep, from the beginning; each of several joined sources gives an equal share. A corpus of
    the hub that is too large to tokenize whole needs one.
    Raises DataError if the source, split or tokenizer is unknown or cannot be had. A damaged cache file, or that of
    other tokens, is made again, with a warning. If the cache folder cannot be written, a warning says so, and the
    tokens are kept in memory.
    """
    parts = source.split("+")
    for part in parts:
        if not _checked(part, split).whole and limit is None:
            raise DataError(f"{part!r} is too large to tokenize whole: pass limit=<number of tokens>")
    key = fingerprint(source, tokenizer, limit)
    known = vocabulary(tokenizer)
    dtype = np.dtype("<u2" if known <= 1 << 16 else "<u4")
    path = cache_folder() / "tokens" / f"{re.sub(r'[^A-Za-z0-9_.+-]+', '-', source)[:80]}-{split}-{key}.tokens"

    def chunks() -> Iterator[np.ndarray]:
        if len(parts) == 1:
            return _encoded(source, split, _tokenizer(_tokenizer_bytes(tokenizer)), dtype, limit)
        shares = [None if limit is None else limit // len(parts) + (i < limit % len(parts)) for i in range(len(parts))]
        return (tokens(part, split, tokenizer, share).ids for part, share in zip(parts, shares, strict=True))

    try:
        ids = _unkept[path] if path in _unkept else _cached(path, dtype, f"{split} {key}", chunks)
    except _Unwritable as error:
        if path.parent not in _told:
            _told.add(path.parent)
            warnings.warn(f"{error}. Until then each process makes its tokens anew", stacklevel=2)
        ids = _unkept[path] = np.concatenate([np.zeros(0, dtype), *chunks()])
    if not len(ids):
        raise DataError(f"{source} has no text in its {split} split; choose another source or split")
    return Tokens(ids, known, key, source, split)


def sizes(source: str, tokenizer: str = "swarmbook") -> dict[str, dict[str, int]]:
    """Tokens, ends of texts included, and bytes of a source by split, as the card has them of embedded domains."""
    splits = source_of(source).splits
    counted = {split: len(tokens(source, split, tokenizer).ids) for split in splits}
    texts = {split: (text for batch in _documents(source, split) for text in batch) for split in splits}
    return {"tokens": counted, "bytes": {split: sum(len(text.encode()) for text in texts[split]) for split in splits}}


def fingerprint(source: str, tokenizer: str = "swarmbook", limit: int | None = None) -> str:
    """32 hex digits that change with the content of texts or tokenizer, and with nothing else.

    Nothing is tokenized: the embedded files (all splits) are hashed, and a corpus of the hub stands by its revision.
    """
    if limit is not None and limit < source.count("+") + 1:
        raise DataError(f"limit={limit} leaves no token for some source of {source!r}; pass a larger one")
    digest = hashlib.blake2b(repr((FORMAT, limit)).encode(), digest_size=16)
    content = _tokenizer_bytes(tokenizer)
    digest.update(_sha256(content))
    if _cuts_or_pads(content):  # an earlier version cut and padded texts as the file says, and may have cached that
        digest.update(b"whole texts")
    for part in sources_of(source):
        digest.update(hashlib.sha256(part.content().encode()).digest())
    return digest.hexdigest()


def _tokenizer_bytes(name: str) -> bytes:
    if name == "bytes":
        return _without_merges(_tokenizer_bytes("swarmbook"))
    if name == "swarmbook":
        path = data_folder() / "tokenizer.json"
    elif name.endswith(".json"):
        path = Path(name)
    elif name in hub.TOKENIZERS or "/" in name:
        path = hub.tokenizer_file(name)
    else:
        known = ", ".join(("swarmbook", "bytes", *hub.TOKENIZERS))
        raise DataError(f"unknown tokenizer {name!r}: known: {known}, a path to a .json file, <owner>/<name>@<hash>")
    if not path.is_file():
        raise DataError(f"tokenizer {name!r}: there is no file {path}")
    return _read(path, *version(path))


@functools.lru_cache(maxsize=8)
def _read(path: Path, *of: int) -> bytes:
    return path.read_bytes()


@functools.lru_cache(maxsize=8)
def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


@functools.lru_cache(maxsize=8)
def _without_merges(tokenizer: bytes) -> bytes:
    """The file of the embedded tokenizer for single bytes."""
    content = json.loads(tokenizer)
    vocabulary = content["model"]["vocab"].items()
    single = {token: i for token, i in vocabulary if i < len(vocabulary) - len(content["model"]["merges"])}
    content["model"] |= {"vocab": single, "merges": []}
    return json.dumps(content).encode()


def _tokenizer(content: bytes) -> "Tokenizer":
    """The tokenizer in a file's bytes, which neither cuts nor pads a text, whatever the file says."""
    from tokenizers import Tokenizer

    try:
        coder = Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises nothing narrower
        raise DataError(
            f"the tokenizer file is damaged or of another kind ({first_line(error)}): get it anew"
        ) from error
    coder.no_truncation()
    coder.no_padding()
    return coder


@functools.lru_cache(maxsize=8)
def _cuts_or_pads(content: bytes) -> bool:
    try:
        settings = json.loads(content)
        return any(settings.get(name) is not None for name in ("truncation", "padding"))
    except (ValueError, AttributeError):  # told when it is loaded
        return False


def _encoded(source: str, split: str, coder: "Tokenizer", dtype: np.dtype, limit: int | None) -> Iterator[np.ndarray]:
    """The ids of a batch of documents at a time, `limit` ids in all. End-of-text closes each document."""
    from tqdm.auto import tqdm

    end = end_of_text(coder)
    coder.encode_special_tokens = True  # a document that spells out a special token must not end there
    left = math.inf if limit is None else limit
    name = f"tokens of {source} ({split})"
    quiet = not source.startswith("hub:") and not sys.stderr.isatty()  # read soon: no bar in notebooks
    with tqdm(desc=name, total=limit, unit="", unit_scale=True, delay=2, disable=quiet) as bar:
        for batch in _documents(source, split):
            encodings = coder.encode_batch_fast(batch, add_special_tokens=False)
            ids = np.array([i for encoding in encodings for i in (*encoding.ids, end)], dtype=dtype)
            ids = ids[: min(left, len(ids))]
            left -= len(ids)
            bar.update(len(ids))
            yield ids
            if left == 0:
                return


def _cached(path: Path, dtype: np.dtype, what: str, chunks: Callable[[], Iterable[np.ndarray]]) -> np.ndarray:
    """The ids in the cache file `path`, written first from `chunks` if the file is missing, damaged or another's.

    what: the split and the fingerprint of the tokens. A file is one header (this, dtype, length, checksum), then the
    ids. It appears by an atomic rename, under a lock, so that of several processes one makes it and the others wait. It
    is no `.npy` file, as that has no checksum: a bit that flips in one is read as another token, while comparing ours
    took 0.4 ms for the 700,000 tokens of a domain and 48 ms for 100 million. A `.npy` header also holds the length,
    which is not known before the last document is encoded.
    """
    ids = _opened(path, dtype, what)
    if ids is not None:
        return ids
    with contextlib.ExitStack() as stack:
        with _cache_errors(path):
            stack.enter_context(lock(path.with_name(f"{path.name}.lock"), blocking=True, what=f"the tokens in {path}"))
        ids = _opened(path, dtype, what)
        if ids is not None:
            return ids
        with _cache_errors(path):
            clean(path)
        if path.exists():
            warnings.warn(f"token cache {path} is damaged or another's; making it again", stacklevel=3)
        if not _write(path, dtype, what, chunks()):
            return np.zeros(0, dtype)
    ids = _opened(path, dtype, what)
    if ids is None:
        raise _Unwritable(f"cannot use the cache folder {path.parent} ({path.name} is not what was written to it)")
    return ids


def _write(path: Path, dtype: np.dtype, what: str, chunks: Iterable[np.ndarray]) -> bool:
    """Write a cache file; False if there are no ids, which nothing is written for."""
    chunks = iter(chunks)
    first = next((chunk for chunk in chunks if len(chunk)), None)
    if first is None:
        return False
    with whole_file(path, lambda: _cache_errors(path)) as file:
        # an OSError of the corpus must not pass for one of the cache folder
        for chunk in itertools.chain([np.zeros(_HEADER_BYTES, np.uint8), first], chunks):
            with _cache_errors(path):
                file.write(chunk.tobytes())
        with _cache_errors(path):
            file.flush()
            header = _header(np.memmap(file, dtype, "r", offset=_HEADER_BYTES), what)
            file.seek(0)
            file.write(header)
    return True


def _opened(path: Path, dtype: np.dtype, what: str) -> np.ndarray | None:
    """The memory map of a cache file, or None if it is missing, damaged or another's.

    A process compares a checksum once.
    """
    with _cache_errors(path):
        try:
            file = open_regular(path)
        except (FileNotFoundError, ValueError):
            return None
        with file:
            status = os.fstat(file.fileno())
            body = status.st_size - _HEADER_BYTES
            if body <= 0 or body % dtype.itemsize:
                return None
            ids = np.memmap(file, dtype, "r", offset=_HEADER_BYTES)
            stamp = (path, status.st_ino, status.st_size, status.st_mtime_ns)
            if stamp not in _verified:
                file.seek(0)
                if file.read(_HEADER_BYTES) != _header(ids, what):
                    return None
                _verified.add(stamp)
        return ids


def _header(ids: np.ndarray, what: str) -> bytes:
    data = ids.view(np.uint8)
    checksum = 0
    if data.nbytes <= _WHOLE:
        checksum = zlib.crc32(data)
    else:
        for first in np.linspace(0, data.nbytes - (1 << 20), 256).astype(np.int64):
            checksum = zlib.crc32(data[first : first + (1 << 20)], checksum)
    fields = {"format": FORMAT, "of": what, "dtype": ids.dtype.str, "length": len(ids), "checksum": checksum}
    return json.dumps(fields).encode().ljust(_HEADER_BYTES)


@contextlib.contextmanager
def _cache_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Unwritable(
            f"cannot use the cache folder {path.parent} ({error}): "
            "make room, or set SWARMBOOK_CACHE to a writable folder"
        ) from error


def texts(source: str, split: str) -> "Dataset | IterableDataset":
    """The documents of one source (not several joined with "+"), in a column `text`.

    An embedded domain gives a `datasets.Dataset` in memory, any other source a `datasets.IterableDataset`.
    """
    return _checked(source, split).texts(split)


def source_of(name: str) -> Source:
    """The source of this name. DataError if it is unknown or malformed; of a text of one's own, if it is not there."""
    if name.startswith("hub:"):
        return hub.corpus(name) if hub.is_named(name) else hub_dataset.hub_dataset(name)
    return local_text.local_text(name) if local_text.is_local(name) else Domain(name)


def sources_of(joined: str) -> list[Source]:
    """The sources that are joined with "+"."""
    return [source_of(name) for name in joined.split("+")]


def _checked(name: str, split: str) -> Source:
    """The source of this name; DataError if it has no such split."""
    found = source_of(name)
    check_known(f"split of {name!r}", split, found.splits)
    return found


def _documents(source: str, split: str) -> Iterator[list[str]]:
    """The documents of a source that are not blank, some at a time. DataError names a file that cannot be read."""
    for batch in source_of(source).batches(split):
        if strange := next((text for text in batch if not isinstance(text, str | None)), None):
            raise DataError(f"{source!r} ({split}) holds {strange!r} in place of a text: name a column of texts")
        yield [text for text in batch if text and not text.isspace()]
