"""How the hops of a payment end and what committees decide: the one place where these words are spelt.

Serves: every protocol, the requirements, and the columns "hop 1", "hop 2", ... of the notebook's tables.
"""

from enum import StrEnum


class Word(StrEnum):
    """A member prints, compares and hashes as its plain text, so that it can stand in a table or a signed statement."""

    __repr__, __hash__ = str.__repr__, str.__hash__


class Outcome(Word):
    """How one hop of a payment stands, as tables print it."""

    PAID = "Paid"
    REFUNDED = "Refunded"
    LOCKED = "Locked"
    NEVER_LOCKED = "never locked"


class Decision(Word):
    """What members of a committee sign about a lock (SyncPCN) or about an order (PSyncPCN).

    PAID and REFUNDED decide a lock or, PAID, an order. CONCEDED: the payer gives a disputed lock up to the payee. LOCK:
    the coins of an order are reserved. ABORT: the order is given up. READY: the last channel has reserved the coins.
    """

    PAID = "PAID"
    REFUNDED = "REFUNDED"
    CONCEDED = "CONCEDED"
    LOCK = "LOCK"
    ABORT = "ABORT"
    READY = "READY"

    @property
    def outcome(self) -> Outcome:
        """How a hop ends whose lock is decided like this: a concession pays the payee."""
        return Outcome.REFUNDED if self is Decision.REFUNDED else Outcome.PAID
