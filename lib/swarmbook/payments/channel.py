"""A channel of two parties: its states, the locks in them, how one state follows from another, and what a close gives.

- side 0 is the left party, side 1 the right one; balances and amounts are whole numbers
- `follow` computes the next state from a change; both parties do it on their own, so that a proposal need not be
  believed
- `Commitment` hides a state behind a digest; a `Proof` shows one of its locks and nothing of balances or other locks
- `close` is the contract: of the announcements of a quorum the newest counts
"""

from collections.abc import Iterable
from typing import NamedTuple

from swarmbook.payments.signatures import Keys

PAID, REFUNDED, CONCEDED = "PAID", "REFUNDED", "CONCEDED"


class Lock(NamedTuple):
    """An amount set aside until it is opened or refunded.

    pid: random, of this hop alone. payer: its side. condition: what a key must open. expiry: time.
    """

    pid: int
    payer: int
    amount: int
    condition: object
    expiry: float

    def statement(self) -> tuple:
        return ("lock", self.pid, self.payer, self.amount, self.condition, int(self.expiry * 1000))


class State(NamedTuple):
    """A state of channel cid: seq counts updates, balances (left, right) are what is not locked."""

    cid: int
    seq: int
    left: int
    right: int
    locks: tuple[Lock, ...]
    nonce: int

    @property
    def capacity(self) -> int:
        return self.left + self.right + sum(lock.amount for lock in self.locks)

    def lock(self, pid: int) -> Lock | None:
        for lock in self.locks:
            if lock.pid == pid:
                return lock
        return None


class Change(NamedTuple):
    """What is to be done: add `lock`, or open, fail or resolve the lock `pid`, or pay `amount` from side to side.

    what: lock, open, fail or pay. key: of an opening. resolved: certificates of locks that a committee has decided,
    folded into the same update.
    """

    what: str
    lock: Lock | None = None
    pid: int = 0
    amount: int = 0
    key: object = None
    resolved: tuple = ()


class Refused(Exception):
    """A change that this state does not allow."""


def follow(state: State, side: int, change: Change, nonce: int, outcomes: Iterable[tuple[int, str]] = ()) -> State:
    """The state after a change that `side` proposes.

    outcomes: (pid, PAID or REFUNDED) of the locks in change.resolved, which the caller has verified. Refused if the
    change is not that side's to make, or a balance would become negative.
    """
    balances, locks = [state.left, state.right], state.locks
    for pid, outcome in outcomes:
        lock = state.lock(pid)
        if lock is None:
            raise Refused(f"no lock {pid} to resolve")
        balances[lock.payer ^ (outcome != REFUNDED)] += lock.amount
        locks = tuple(other for other in locks if other.pid != pid)
    if change.what == "lock":
        lock = change.lock
        if lock.payer != side or lock.amount <= 0 or any(other.pid == lock.pid for other in locks):
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
    """A state's digest, and the digests it is made of: of balances with the nonce, and of each lock."""

    root: object
    balances: object
    locks: tuple


def commit(state: State, keys: Keys) -> Commitment:
    """root = H(cid, seq, H(left, right, nonce), H(lock) ...); without the nonce nobody can guess balances from it."""
    if keys.mode == "mock":
        locks = tuple(map(hash, state.locks))
        balances = hash((state.left, state.right, state.nonce))
        return Commitment(hash((state.cid, state.seq, balances, locks)), balances, locks)
    locks = tuple(keys.digest(lock.statement()) for lock in state.locks)
    balances = keys.digest(("balances", state.left, state.right, state.nonce))
    return Commitment(keys.digest(("state", state.cid, state.seq, balances, locks)), balances, locks)


class Proof(NamedTuple):
    """Shows that a lock is in the state with this digest: the lock, and the digests of everything else."""

    seq: int
    lock: Lock
    balances: object
    locks: tuple

    def root(self, cid: int, keys: Keys) -> object:
        """The digest of the state that this proves, or None if the lock is not in it."""
        mock = keys.mode == "mock"
        if (hash(self.lock) if mock else keys.digest(self.lock.statement())) not in self.locks:
            return None
        if mock:
            return hash((cid, self.seq, self.balances, self.locks))
        return keys.digest(("state", cid, self.seq, self.balances, self.locks))


def prove(state: State, commitment: Commitment, lock: Lock) -> Proof:
    return Proof(state.seq, lock, commitment.balances, commitment.locks)


def close(published: Iterable[tuple[int, object]], quorum: int) -> tuple[int, object]:
    """What the contract takes from the first quorum of members' announcements (seq, root): the newest.

    ValueError with fewer.
    """
    claims = list(published)[:quorum]
    if len(claims) < quorum:
        raise ValueError(f"a close needs the announcements of {quorum} members, not {len(claims)}")
    return max(claims, key=lambda claim: claim[0])
