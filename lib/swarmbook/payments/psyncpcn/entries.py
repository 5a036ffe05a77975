"""What a member of PSyncPCN's committees knows of an order, and what it has made of it.

Serves: PSyncPCN in all its figures.
"""

from swarmbook.payments.outcomes import Outcome
from swarmbook.payments.psyncpcn.messages import Order


class OrderState:
    """What a member has made of an order.

    WAITING: for its turn or for agreement. REFUSED: it has said ABORT for lack of coins, on its own, and follows its
    committee if that has locked all the same. PAID and ABORTED are final.
    """

    NEW = "new"
    WAITING = "waiting"
    RESERVED = "reserved"
    REFUSED = "refused"
    PAID = "paid"
    ABORTED = "aborted"


UNSEEN: frozenset[str] = frozenset()
FINAL = {OrderState.PAID: Outcome.PAID, OrderState.ABORTED: Outcome.REFUNDED}
UNLOCKED = OrderState.NEW, OrderState.WAITING, OrderState.REFUSED


class Entry:
    """What a member knows of one order.

    pid: its name. place: of the member's channel on the order's path, from 0; before: the channel of the place before,
    or None; last: whether there is none behind. side, amount: who pays in that channel, and how much. placed: whether
    the committee has agreed on its slot; evidence: the signatures by which the committee before has locked it (V3).
    """

    __slots__ = ("order", "pid", "state", "place", "before", "last", "side", "amount", "placed", "evidence")

    def __init__(self, order: Order, pid: object, place: int) -> None:
        self.order, self.pid, self.state, self.place = order, pid, OrderState.NEW, place
        self.side, self.amount = order.payers[place], order.amounts[place]
        self.before = order.cids[place - 1] if place else None
        self.last, self.placed = place == len(order.cids) - 1, False
        self.evidence: tuple[tuple[str, object], ...] = ()

    def prove(self, cid: int, name: str, signature: object) -> None:
        """Keep a share of LOCK, if it is of the committee before."""
        if cid == self.before:
            self.evidence = *self.evidence, (name, signature)
