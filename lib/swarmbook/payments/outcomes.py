"""How the hops of a payment end and what committees decide: the one place where these words are spelt.

They are plain text, since looking a member of an enumeration up takes longer than many an event of a simulation.

Serves: every protocol, the requirements, and the columns "hop 1", "hop 2", ... of the notebook's tables.
"""


class Outcome:
    """How one hop of a payment stands, as tables print it."""

    PAID = "Paid"
    REFUNDED = "Refunded"
    LOCKED = "Locked"
    NEVER_LOCKED = "never locked"


class Decision:
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


def outcome_of(decision: str) -> str:
    """How a hop ends whose lock is decided like this: a concession pays the payee."""
    return Outcome.REFUNDED if decision == Decision.REFUNDED else Outcome.PAID
