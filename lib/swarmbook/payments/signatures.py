"""Who signed what: Ed25519 keys, quorums and their certificates.

- `Keys` signs and verifies in one of three modes: "real" checks every signature; "cached" checks each distinct one
  once; "mock" replaces a signature by the pair of signer and statement, for runs in which millions are exchanged.
- A statement is a tuple that begins with its kind (`swarmbook.payments.encoding`).
- A `Committee` has m members, of which f = (m - 1) // 3 may be faulty, and a quorum of m - f.
- A `Certificate` holds votes of distinct members on one statement. It is worth what `verify` says, whoever sent it.

Serves: every protocol with committees; the table of signatures made and verified, and the threshold f of 3 f + 1 (S12).
"""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from swarmbook.errors import ConfigError, unknown
from swarmbook.payments.encoding import digest, encode

MODES = ("mock", "cached", "real")


class Keys:
    """The key pairs of everybody in a simulation, by name. They are made when first used, the same for the same seed.

    signed, verified: how many signatures were asked for, and how many verifications. checked: how many Ed25519
    verifications were really made. Raises ConfigError for an unknown mode.
    """

    def __init__(self, mode: str = "mock", seed: int = 0) -> None:
        if mode not in MODES:
            raise ConfigError(unknown("mode of signatures", mode, MODES))
        self.mode, self.seed = mode, seed
        self.signed = self.verified = self.checked = 0
        self._private: dict[str, Ed25519PrivateKey] = {}
        self._public: dict[str, Ed25519PublicKey] = {}
        self._known: dict[tuple, bool] = {}

    def sign(self, who: str, statement: tuple) -> object:
        """The signature of `who` on a statement: 64 bytes, or in mock mode the pair of both."""
        self.signed += 1
        if self.mode == "mock":
            return who, statement
        return self._pair(who).sign(encode(statement))

    def verify(self, who: str, statement: tuple, signature: object) -> bool:
        """Whether this is the signature of `who` on this very statement; anything else is refused, not an error."""
        self.verified += 1
        if self.mode == "mock":
            return signature == (who, statement)
        if not isinstance(signature, bytes):
            return False
        try:
            body = encode(statement)
        except TypeError:  # nobody can have signed what has no bytes
            return False
        if self.mode == "real":
            return self._check(who, body, signature)
        key = who, body, signature
        if key not in self._known:
            self._known[key] = self._check(who, body, signature)
        return self._known[key]

    def digest(self, statement: tuple) -> object:
        """SHA-256 of a statement; in mock mode a 64-bit hash, for which all its parts must be integers."""
        return hash(statement) if self.mode == "mock" else digest(statement)

    def _pair(self, who: str) -> Ed25519PrivateKey:
        if who not in self._private:
            seed = hashlib.sha256(encode(("key", self.seed, who))).digest()
            self._private[who] = Ed25519PrivateKey.from_private_bytes(seed)
            self._public[who] = self._private[who].public_key()
        return self._private[who]

    def _check(self, who: str, body: bytes, signature: bytes) -> bool:
        self.checked += 1
        self._pair(who)
        try:
            self._public[who].verify(signature, body)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class Committee:
    """The members of one channel's committee, by name. ConfigError for fewer than one, or for a name twice."""

    members: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.members or len(set(self.members)) != len(self.members):
            raise ConfigError(f"a committee needs distinct members, not {self.members}")

    @property
    def size(self) -> int:
        return len(self.members)

    @property
    def faulty(self) -> int:
        """f, the most members that may be faulty: (m - 1) // 3."""
        return (len(self.members) - 1) // 3

    @property
    def quorum(self) -> int:
        """q = m - f = floor(2 m / 3) + 1, which is 2 f + 1 for m = 3 f + 1."""
        return len(self.members) - self.faulty


class Certificate(NamedTuple):
    """Votes (member, signature) on one statement."""

    statement: tuple[str, object, object, object]
    votes: tuple[tuple[str, object], ...]

    def verify(self, committee: Committee, keys: Keys) -> bool:
        """Whether at least a quorum of distinct members of this committee signed this statement."""
        valid = {
            name
            for name, signature in self.votes
            if name in committee.members and keys.verify(name, self.statement, signature)
        }
        return len(valid) >= committee.quorum


class Tally:
    """Gathers the votes of one committee, statement by statement, and tells when a quorum is reached."""

    __slots__ = ("quorum", "votes")

    def __init__(self, quorum: int) -> None:
        self.quorum = quorum
        self.votes: dict[object, dict[str, object]] = {}

    def add(self, about: object, who: str, signature: object) -> bool:
        """Note a vote that was verified before; True when it is the one that completes the quorum, and only then."""
        votes = self.votes.get(about)
        if votes is None:
            votes = self.votes[about] = {}
        elif who in votes:
            return False
        votes[who] = signature
        return len(votes) == self.quorum

    def certificate(self, about: object, statement: tuple) -> Certificate:
        return Certificate(statement, tuple(self.votes[about].items()))
