"""A channel of two parties: its states, the locks in them, how one state follows from another, and what a close gives.

- Side 0 is the left party, side 1 the right one. Balances and amounts are whole numbers of coins.
- `follow` computes the next state from a change. Both parties compute it on their own, so that neither has to believe
  the other's proposal.
- A `Commitment` hides a state behind a digest. A `Proof` shows one of its locks, and nothing of balances or other
  locks.
- `close` is the contract on the blockchain: of the states that a quorum of members announces, the newest counts.

Serves: SyncPCN in all its figures; requirements R6 and R8 (claims S8 and S12), privacy (S14).
"""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

from swarmbook.payments.outcomes import Decision
from swarmbook.payments.signatures import Certificate, Keys


class Lock(NamedTuple):
    """An amount that is set aside until it is opened or refunded.

    pid: a random number that names this lock. payer: the side that pays. amount: coins. condition: what a key has to
    open (`lock_conditions`). expiry: the time until which a key counts.
    """

    pid: int
    payer: Literal[0, 1]
    amount: int
    condition: object
    expiry: float

    def statement(self) -> tuple:
        return ("lock", self.pid, self.payer, self.amount, self.condition, float(self.expiry).hex())


class State(NamedTuple):
    """A state of channel `cid`.

    seq: the number of updates so far. left, right: the coins of each side that are not locked. nonce: a random number
    that keeps others from guessing the balances.
    """

    cid: int
    seq: int
    left: int
    right: int
    locks: tuple[Lock, ...]
    nonce: int

    @property
    def capacity(self) -> int:
        """All coins in the channel."""
        return self.left + self.right + sum(lock.amount for lock in self.locks)

    def lock(self, pid: int) -> Lock | None:
        """The lock of that name, or None if the state does not hold it."""
        for lock in self.locks:
            if lock.pid == pid:
                return lock
        return None


class Resolved(NamedTuple):
    """How a committee has decided a lock: the certificate, and if it pays the payee, the key that opens the lock.

    The certificate has no votes where the party that loses the lock gives it up itself.
    """

    certificate: Certificate
    key: object

    @property
    def about(self) -> object:
        """The digest of the lock."""
        return self.certificate.statement[2]

    @property
    def decision(self) -> str:
        return self.certificate.statement[3]


class Change(NamedTuple):
    """What an update does to a state.

    what: "lock" adds `lock`; "open" pays the lock `pid` out with `key`; "fail" gives the lock `pid` back; "pay" moves
    `amount` to the other side, in the direct payment `pid`. resolved: locks that a committee has decided, which the
    same update removes.
    """

    what: str
    lock: Lock | None = None
    pid: int = 0
    amount: int = 0
    key: object = None
    resolved: tuple[Resolved, ...] = ()


class Refused(Exception):
    """The state does not allow a change."""


def follow(state: State, side: int, change: Change, nonce: int, decided: Iterable[tuple[int, str]] = ()) -> State:
    """The state after a change that `side` proposes.

    decided: (pid, decision) of each lock in `change.resolved`; the caller has verified their certificates. Raises
    Refused if that side may not make the change, or if a balance would become negative.
    """
    balances, locks = [state.left, state.right], state.locks
    for pid, decision in decided:
        lock = next((other for other in locks if other.pid == pid), None)  # gone, if it is decided twice
        if lock is None:
            raise Refused(f"no lock {pid} to resolve")
        balances[lock.payer ^ (decision != Decision.REFUNDED)] += lock.amount
        locks = tuple(other for other in locks if other.pid != pid)
    if change.what == "lock":
        lock = change.lock
        same = any(other.pid == lock.pid for other in locks)
        if lock.payer != side or lock.amount <= 0 or same or not math.isfinite(lock.expiry):
            raise Refused(f"{lock} is not for side {side} to add")
        balances[side] -= lock.amount
        locks = (*locks, lock)
    elif change.what in ("open", "fail"):
        lock = next((other for other in locks if other.pid == change.pid), None)
        if lock is None or lock.payer == side:
            raise Refused(f"lock {change.pid} is not for side {side} to {change.what}")
        balances[lock.payer ^ (change.what == "open")] += lock.amount
        locks = tuple(other for other in locks if other is not lock)
    elif change.what == "pay":
        if change.amount <= 0:
            raise Refused(f"cannot pay {change.amount}")
        balances[side] -= change.amount
        balances[1 - side] += change.amount
    if min(balances) < 0:
        raise Refused(f"balances would become {balances}")
    return State(state.cid, state.seq + 1, *balances, locks, nonce)


class Commitment(NamedTuple):
    """The digest `root` of a state, and the digests that it is made of: of the balances, and of each lock."""

    root: object
    balances: object
    locks: tuple


def commit(state: State, keys: Keys) -> Commitment:
    """The commitment root = H(cid, seq, H(left, right, nonce), H(lock), ...).

    Who does not know the nonce cannot guess the balances from it.
    """
    if keys.mode == "mock":
        locks = tuple(map(hash, state.locks))
        balances = hash((state.left, state.right, state.nonce))
        return Commitment(hash((state.cid, state.seq, balances, locks)), balances, locks)
    locks = tuple(lock_digest(lock, keys) for lock in state.locks)
    balances = keys.digest(("balances", state.left, state.right, state.nonce))
    return Commitment(keys.digest(("state", state.cid, state.seq, balances, locks)), balances, locks)


def lock_digest(lock: Lock, keys: Keys) -> object:
    """The digest by which committees and commitments name a lock."""
    return hash(lock) if keys.mode == "mock" else keys.digest(lock.statement())


class Proof(NamedTuple):
    """Shows that a state holds a lock: the lock itself, and the digests of everything else in the state."""

    seq: int
    lock: Lock
    balances: object
    locks: tuple

    def root(self, cid: int, keys: Keys) -> object:
        """The digest of the state that this proves, or None if the lock is not in it."""
        if lock_digest(self.lock, keys) not in self.locks:
            return None
        if keys.mode == "mock":
            return hash((cid, self.seq, self.balances, self.locks))
        return keys.digest(("state", cid, self.seq, self.balances, self.locks))


def prove(state: State, commitment: Commitment, lock: Lock) -> Proof:
    """The proof that this state, which has this commitment, holds this lock."""
    return Proof(state.seq, lock, commitment.balances, commitment.locks)


def close(published: Iterable[tuple[int, object]], quorum: int) -> tuple[int, object]:
    """The newest of the first `quorum` announcements (seq, root): the state that the contract pays out.

    The contract takes only what both parties have signed, which is for the caller to see to. Raises ValueError if there
    are fewer.
    """
    claims = list(published)[:quorum]
    if len(claims) < quorum:
        raise ValueError(f"a close needs the announcements of {quorum} members, not {len(claims)}")
    return max(claims, key=lambda claim: claim[0])
