"""From raw text to documents: normalise, cut into blocks, drop near-duplicates, sample, split.

Every function is pure and needs no file, so that tests can feed it a line or two.
"""

import hashlib
import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

FOLDS = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),
        **dict.fromkeys("\u2014\u2015", "--"),
        # Soft hyphen, zero-width characters and byte-order mark carry no text.
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", ""),
        "\r": "",
        "\f": "\n",
    }
)


def normalise(text: str) -> str:
    """NFKC; quotes and dashes to ASCII; no carriage returns, trailing blanks or runs of blank lines."""
    # Folding comes first as well: NFKC alone would turn a double prime into two characters.
    text = unicodedata.normalize("NFKC", text.translate(FOLDS)).translate(FOLDS)
    text = re.sub(r"[^\S\n]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def size(text: str) -> int:
    """Bytes of UTF-8."""
    return len(text.encode())


def pieces(paragraph: str, limit: int) -> list[str]:
    """Cut a paragraph of more than `limit` bytes at line ends, at blanks or anywhere; nothing is lost."""
    parts = [paragraph]
    for boundary in (r"(?<=\n)", r"(?<= )", r"(?s)(?<=.)"):
        parts = [piece for part in parts for piece in ([part] if size(part) <= limit else re.split(boundary, part))]
    return parts


def blocks(text: str, limit: int) -> list[str]:
    """Blocks of at most `limit` bytes and about equal length, cut at paragraph boundaries where possible."""
    if size(text) <= limit:
        return [text] if text.strip() else []
    paragraphs = [piece for part in re.split(r"(?<=\n\n)", text) for piece in pieces(part, limit)]
    target = size(text) / math.ceil(size(text) / limit)
    found, current, length = [], [], 0
    for paragraph in paragraphs:
        if current and (length + size(paragraph) > limit or length >= target):
            found.append("".join(current))
            current, length = [], 0
        current.append(paragraph)
        length += size(paragraph)
    found.append("".join(current))
    # A cut within a line leaves a blank behind.
    return [block.strip("\n").rstrip() for block in found if block.strip()]


def documents(units: Iterable[tuple[str, str]], limit: int, least: int = 200) -> Iterator[tuple[str, str]]:
    """Normalised blocks of all units, scraps below `least` bytes left out; blocks of a unit are numbered."""
    for source, text in units:
        cut = blocks(normalise(text), limit)
        for number, block in enumerate(cut):
            if size(block) >= least:
                yield (source if len(cut) == 1 else f"{source}#{number}"), block


def shingles(text: str, words: int = 8) -> set[int]:
    """64-bit hashes of all runs of `words` words, letter case ignored; a shorter text is one shingle."""
    tokens = text.lower().split()
    # Python's own hash of a string differs from process to process.
    codes = np.array(
        [int.from_bytes(hashlib.blake2b(token.encode(), digest_size=8).digest(), "little") for token in tokens],
        dtype=np.uint64,
    )
    span = max(1, min(words, len(codes)))
    if not len(codes):
        return set()
    total = np.zeros(len(codes) - span + 1, dtype=np.uint64)
    for offset in range(span):
        # Polynomial hash modulo 2^64: an odd multiplier keeps the order of the words.
        total = total * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + len(total)]
    return set(total.tolist())


@dataclass
class Seen:
    """Shingles of all documents kept so far, over all domains."""

    limit: float = 0.4
    known: set[int] = field(default_factory=set)

    def keep(self, text: str) -> bool:
        """True, and remember the text, unless more than `limit` of its shingles are known."""
        new = shingles(text)
        if len(new & self.known) > self.limit * len(new):
            return False
        self.known |= new
        return True


def order(count: int, seed: int, name: str) -> list[int]:
    """A random order of `count` documents that depends on nothing but seed and domain name."""
    generator = np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
    # Raw bits of a bit generator are fixed for all numpy versions; `permutation` is not.
    return np.argsort(generator.random_raw(count), kind="stable").tolist()


def sample(
    found: list[tuple[str, str]], ranks: list[int], target: int, seen: Seen | None
) -> tuple[list[tuple[str, str]], int]:
    """Documents in the order of `ranks` until `target` bytes, and how many near-duplicates were dropped.

    With `seen` None only exact repetitions go: template stories share most of their shingles by design.
    """
    kept, texts, dropped, total = [], set(), 0, 0
    for rank in ranks:
        source, text = found[rank]
        length = size(text)
        if total + length > target:
            continue
        if text in texts or (seen is not None and not seen.keep(text)):
            dropped += 1
            continue
        texts.add(text)
        kept.append((source, text))
        total += length
        # Going on would fill the rest with the shortest documents of the corpus.
        if total > 0.99 * target:
            break
    return kept, dropped


def split(kept: list[tuple[str, str]], shares: dict[str, float]) -> list[str]:
    """The split of each document: runs of the random order, by bytes, at least one document each."""
    sizes = np.array([size(text) for _, text in kept], dtype=float)
    middle = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    edges = np.cumsum(list(shares.values()))
    names = [list(shares)[i] for i in np.minimum(np.searchsorted(edges, middle, "right"), len(shares) - 1)]
    missing = set(shares) - set(names)
    if missing:
        raise ValueError(f"{len(kept)} documents leave {sorted(missing)} empty: use a larger target or smaller blocks")
    return names


def ngram_bits(train: bytes, test: bytes, order: int = 5) -> float:
    """Bits per byte of `test` under an interpolated Witten-Bell byte model of `train`: how hard a text is."""
    follows, totals, kinds = Counter(), Counter(), Counter()
    for length in range(order):
        for i in range(length, len(train)):
            context = train[i - length : i]
            event = context, train[i]
            kinds[context] += event not in follows
            follows[event] += 1
            totals[context] += 1
    bits = 0.0
    for i in range(order, len(test)):
        chance = 1 / 256
        for length in range(order):
            context = test[i - length : i]
            if context not in totals:
                break
            chance = (follows[context, test[i]] + kinds[context] * chance) / (totals[context] + kinds[context])
        bits -= math.log2(chance)
    return bits / max(1, len(test) - order)
