"""The order in which training sees the tokens of a corpus, by step, and the windows that it is evaluated on.

A batch is found from its step alone: a run resumes at any step, and runs that are compared see the same batches.

Serves: every run that trains.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from swarmbook.errors import DataError


@dataclass(frozen=True, eq=False)
class Tokens:
    """A split of a source as token ids.

    `ids` is a read-only memory map, 1-D, uint16 (uint32 above 65,536 vocabulary entries). `fingerprint` is
    that of the source (`swarmbook.data.tokenization.fingerprint`), the same for all its splits.
    """

    ids: np.ndarray
    vocabulary: int
    fingerprint: str
    source: str
    split: str


class Batches:
    """Training batches by step: `batches[step]` is int64 [per_step, sequence + 1], inputs and targets overlapping.

    Window w holds tokens w * sequence to (w + 1) * sequence, both included, so that the last target of one window is
    the first input of the next. What is left at the end of the corpus is not used. Epoch e visits all windows once, in
    a permutation drawn from `SeedSequence(seed, spawn_key=(e,))`. Steps take `per_step` windows at a time from the
    endless sequence of epochs, so that a batch may straddle two epochs. A batch depends on nothing but (tokens,
    sequence, per_step, seed, step).

    per_step: how many windows, or a shape: (R, M, B) gives [R, M, B, sequence + 1].
    seed: an int, or a `SeedSequence` whose spawn key is extended by e.
    Raises DataError for a corpus of less than one window.
    """

    def __init__(
        self,
        tokens: Tokens,
        sequence: int,
        per_step: int | Sequence[int],
        seed: int | np.random.SeedSequence,
    ):
        self.shape = tuple(np.atleast_1d(per_step).tolist())
        self.count = math.prod(self.shape)
        if self.count < 1:
            raise ValueError(f"per_step={per_step} asks for no window; all its numbers must be at least 1")
        self.windows = _windows(tokens, sequence)
        self.sequence = sequence
        self.seed = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        self._ids = np.asarray(tokens.ids)
        self._orders: dict[int, np.ndarray] = {}

    def __getitem__(self, step: int) -> np.ndarray:
        if step < 0:
            raise IndexError(f"step {step} is negative; steps count from 0")
        window = np.empty(self.count, dtype=np.int64)
        filled = 0
        while filled < self.count:
            epoch, position = divmod(step * self.count + filled, self.windows)
            part = self._order(epoch)[position : position + self.count - filled]
            window[filled : filled + len(part)] = part
            filled += len(part)
        return _cut(self._ids, window, self.sequence).reshape(*self.shape, self.sequence + 1)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            while len(self._orders) > 1:  # two, since a batch may straddle
                del self._orders[next(iter(self._orders))]
            key = (*self.seed.spawn_key, epoch)
            generator = np.random.default_rng(np.random.SeedSequence(self.seed.entropy, spawn_key=key))
            self._orders[epoch] = generator.permutation(self.windows)
        return self._orders[epoch]


class Shards:
    """Training batches of replicas that each read one source: `shards[step]` is int64 [R, M, B, sequence + 1].

    Replica r reads source r mod D of the D given, in an order of its own: `Batches` of (M, B) whose seed is extended
    by r. per_step: (R, M, B).
    """

    def __init__(self, sources: Sequence[Tokens], sequence: int, per_step: Sequence[int], seed: np.random.SeedSequence):
        replicas, *own = per_step
        self.parts = []
        for r in range(replicas):
            branch = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, r))
            self.parts.append(Batches(sources[r % len(sources)], sequence, own, branch))

    def __getitem__(self, step: int) -> np.ndarray:
        return np.stack([part[step] for part in self.parts])


def held_out(tokens: Tokens, sequence: int, count: int) -> np.ndarray:
    """`count` fixed windows, evenly spaced over the corpus: int64 [count, sequence + 1]."""
    windows = _windows(tokens, sequence)
    if not 1 <= count <= windows:
        raise DataError(
            f"count={count} held-out windows of {sequence} tokens were asked of {tokens.source!r} "
            f"({tokens.split}), which has {windows}; ask for 1 to {windows}, or for a shorter sequence"
        )
    return _cut(np.asarray(tokens.ids), np.arange(count) * windows // count, sequence)


def _windows(tokens: Tokens, sequence: int) -> int:
    if sequence < 1:
        raise ValueError(f"sequence={sequence} must be at least 1 token")
    if len(tokens.ids) < sequence + 1:
        raise DataError(
            f"{tokens.source!r} ({tokens.split}) has {len(tokens.ids):,} tokens, but one window of "
            f"sequence={sequence} needs {sequence + 1:,}; "
            "shorten the sequence, raise the limit, or join sources with '+'"
        )
    return (len(tokens.ids) - 1) // sequence


def _cut(ids: np.ndarray, window: np.ndarray, sequence: int) -> np.ndarray:
    at = window[:, None] * sequence + np.arange(sequence + 1)  # [windows, sequence + 1]
    return ids[at].astype(np.int64)
