"""What SyncPCN sends beyond the base layer: the sender's instructions, and disputes.

Serves: SyncPCN in all its figures; the drawings of its claim, refund and concession.
"""

from typing import NamedTuple

from swarmbook.payments.channel import Lock, Proof
from swarmbook.payments.channel_committee import Announce


class Setup(NamedTuple):
    """What the sender tells a party between two hops, or the receiver. Taken as encrypted.

    incoming, outgoing: channel and lock of the hop before and after the party; outgoing is None for the receiver. step:
    y of the outgoing lock (`lock_conditions`), for the receiver the sum of all steps. invoice: for the receiver.
    """

    incoming: tuple[int, Lock]
    outgoing: tuple[int, Lock] | None
    step: int
    invoice: object


class Claim(NamedTuple):
    """The payee shows members the key of a lock, and that the newest state holds this lock.

    proof, left, right: of the newest state that both have signed. pending: of the one that the payee has proposed,
    which the payer may have signed, and shown to members alone; None if there is none that holds the lock.
    """

    cid: int
    proof: Proof
    left: object
    right: object
    key: object
    pending: Proof | None = None


class RefundRequest(NamedTuple):
    """A party shows members that the newest state holds a lock, with its own signature alone.

    A payer whose payee never co-signed has no other signature. The vote is about this very lock, so that an invented
    one decides nothing. A payee asks for a refund when its payer does not take a failed payment back. pending: as in a
    `Claim`.
    """

    cid: int
    proof: Proof
    signature: object
    pending: Proof | None = None


class Concede(NamedTuple):
    """The payer gives the lock with the digest `about` up to the payee, since it has learned the key."""

    cid: int
    about: object
    lock: Lock
    key: object
    signature: object


class Vote(NamedTuple):
    """A member's signature on what becomes of the lock with the digest `about`."""

    cid: int
    about: object
    decision: str
    key: object
    signature: object


class NewerState(NamedTuple):
    """A member shows the announcement of a newer state than the one that it was shown."""

    announcement: Announce | None
