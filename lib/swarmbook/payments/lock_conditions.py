"""What a locked payment waits for: a hash or a point, and the keys that open a path of them.

With point locks every hop of a path has another lock: Y_i = R + (y_1 + ... + y_i) G, where R = r G is the receiver's
(anonymous multi-hop locks, AMHL; Malavolta et al., NDSS 2019). Whoever learns the key of hop i + 1 computes that of hop
i, k_i = k_(i+1) - y_(i+1). The sender recovers r, its receipt. With one hash for all hops, colluding parties recognise
a payment, and can skip those in between.

- `Points` is the curve of Bitcoin, secp256k1. cryptography multiplies the generator; adding two points is a formula.
- `Mock` is the same algebra with g(k) = 7 k. It is not one-way, and serves runs with millions of locks.
- `Hash` is Lightning's single hash.

Serves: SyncPCN in all its figures; links and wormholes (S14).
"""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from swarmbook.errors import ConfigError, unknown

PRIME = 2**256 - 2**32 - 977  # of secp256k1's field
ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141  # of its group


class Points:
    """Locks k G on secp256k1, as pairs (x, y). The group is written additively; None is its zero."""

    def secrets(self, rng: np.random.Generator, count: int) -> list[int]:
        """Scalars from 1 to ORDER - 1, 40 random bytes each."""
        drawn = rng.bit_generator.random_raw(5 * count).astype("<u8").tobytes()  # as rng.bytes, in a sixth of the time
        return [1 + int.from_bytes(drawn[at : at + 40]) % (ORDER - 1) for at in range(0, 40 * count, 40)]

    def lock(self, key: int) -> tuple[int, int] | None:
        """k G, through cryptography; computed once for a key that is asked for again."""
        return None if key % ORDER == 0 else _multiplied(key % ORDER)

    def shifted(self, lock: tuple[int, int] | None, by: int) -> tuple[int, int] | None:
        """lock + by G; None for what is no pair of numbers."""
        other = self.lock(by)
        if lock is not None and not (isinstance(lock, tuple) and [type(part) for part in lock] == [int, int]):
            return None
        if lock is None or other is None:
            return other if lock is None else lock
        (x1, y1), (x2, y2) = lock, other
        if x1 == x2 and (y1 + y2) % PRIME == 0:
            return None
        slope = 3 * x1 * x1 * pow(2 * y1, -1, PRIME) if lock == other else (y2 - y1) * pow(x2 - x1, -1, PRIME)
        x3 = (slope * slope - x1 - x2) % PRIME
        return x3, (slope * (x1 - x3) - y1) % PRIME

    def is_lock(self, value: object) -> bool:
        """Whether a value can be a lock: here the zero, or a point of the curve."""
        if value is None or type(value) is not tuple or [type(part) for part in value] != [int, int]:
            return value is None
        x, y = value
        return 0 <= x < PRIME and 0 <= y < PRIME and (y * y - x**3 - 7) % PRIME == 0

    def opens(self, lock: object, key: object) -> bool:
        return isinstance(key, int) and 0 <= key < ORDER and self.lock(key) == lock

    def upstream(self, key: int, by: int) -> int:
        """The key of hop i from that of hop i + 1 and y_(i+1)."""
        return (key - by) % ORDER


@functools.lru_cache(maxsize=4096)
def _multiplied(key: int) -> tuple[int, int]:
    numbers = ec.derive_private_key(key, ec.SECP256K1()).public_key().public_numbers()
    return numbers.x, numbers.y


class Mock(Points):
    """The same algebra over integers, so that a lock gives its key away to whoever divides."""

    def lock(self, key: int) -> int:
        return 7 * key % ORDER

    def shifted(self, lock: int, by: int) -> int | None:
        return (lock + 7 * by) % ORDER if isinstance(lock, int) else None

    def opens(self, lock: object, key: object) -> bool:
        return isinstance(key, int) and 7 * key % ORDER == lock

    def is_lock(self, value: object) -> bool:
        return type(value) is int


class Hash(Points):
    """One lock SHA-256(r) for the whole path."""

    def lock(self, key: int) -> int:
        return int.from_bytes(hashlib.sha256(key.to_bytes(32)).digest())

    def shifted(self, lock: int, by: int) -> int:
        return lock

    def is_lock(self, value: object) -> bool:
        return type(value) is int

    def upstream(self, key: int, by: int) -> int:
        return key


SCHEMES = {"point": Points(), "mock": Mock(), "hash": Hash()}


def scheme(name: str) -> Points:
    """A way to lock by its name: "point", "mock" or "hash". Raises ConfigError for another one."""
    if name not in SCHEMES:
        raise ConfigError(unknown("lock", name, SCHEMES))
    return SCHEMES[name]


@dataclass(frozen=True)
class Path:
    """What the sender prepares: the lock locks[i] of hop i + 1 and its step steps[i], which is y_(i+1)."""

    locks: tuple
    steps: tuple[int, ...]

    @property
    def total(self) -> int:
        """The sum of all steps, which the receiver needs."""
        return sum(self.steps) % ORDER


def path(locks: Points, invoice: object, hops: int, rng: np.random.Generator) -> Path:
    """Locks for a path of this many hops to the receiver whose invoice is R."""
    steps = (0,) * hops if isinstance(locks, Hash) else tuple(locks.secrets(rng, hops))
    made, at = [], invoice
    for step in steps:
        at = locks.shifted(at, step)
        made.append(at)
    return Path(tuple(made), steps)
