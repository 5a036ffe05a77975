"""TODO"""

from typing import NamedTuple

from swarmbook.payments.channel import Lock, Proof
from swarmbook.payments.channel_update import Announce


class Setup(NamedTuple):
    """What the sender tells the party between two hops, or the receiver (outgoing is None). Encrypted.

    step: y of the outgoing lock; for the receiver the sum of all steps.
    """

    incoming: tuple[int, Lock]
    outgoing: tuple[int, Lock] | None
    step: int
    invoice: object


class Claim(NamedTuple):
    """The payee shows the newest signed state with the lock, and the key."""

    cid: int
    proof: Proof
    left: object
    right: object
    key: object


class RefundRequest(NamedTuple):
    """A party shows a state with the lock, and its own signature alone.

    A payer whose payee never co-signed has no other; the vote is about this very lock, so that an invented one decides
    nothing. A payee asks when its payer does not take a failed payment back.
    """

    cid: int
    proof: Proof
    signature: object


class Concede(NamedTuple):
    cid: int
    about: object
    lock: Lock
    key: object
    signature: object


class Vote(NamedTuple):
    cid: int
    about: object
    outcome: str
    key: object
    signature: object


class Stale(NamedTuple):
    """A member has a newer state than the one shown."""

    announcement: Announce
