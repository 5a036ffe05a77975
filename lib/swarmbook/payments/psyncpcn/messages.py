"""What PSyncPCN sends: a sender's order, what committees make of it, and numbers that put orders in sequence.

Serves: PSyncPCN in all its figures; an order's size is part of the bytes in the cost figure.
"""

import functools
from typing import Literal, NamedTuple

from swarmbook.payments.encoding import digest
from swarmbook.payments.signatures import Certificate, Keys


class Order(NamedTuple):
    """What the sender signs: channels and amounts hop by hop, the side that pays in each, and a number used once."""

    cids: tuple[int, ...]
    amounts: tuple[int, ...]
    payers: tuple[Literal[0, 1], ...]
    sender: str
    receiver: str
    nonce: int
    signature: object = None

    def statement(self) -> tuple:
        return ("order", self.cids, self.amounts, self.payers, self.sender, self.receiver, self.nonce)

    def pid(self, keys: Keys) -> object:
        """The name of the order: its digest, so that a sender cannot give two meanings to one payment.

        With mock signatures it is the nonce.
        """
        return self.nonce if keys.mode == "mock" else _digest(self)


@functools.lru_cache(maxsize=4096)
def _digest(order: Order) -> bytes:
    return digest(order.statement())


class Share(NamedTuple):
    """A member's signature share on what its committee decided about one order; a quorum of them is a certificate.

    Shares that go to another committee bring the order along.
    """

    what: str
    cid: int
    pid: object
    order: Order | None
    signature: object


class CarriedCertificate(NamedTuple):
    """A certificate of one committee, which a party carries to the next one (relay="party")."""

    what: str
    cid: int
    pid: object
    order: Order
    certificate: Certificate


class AskNumber(NamedTuple):
    """A member asks the payer of its channel for an order's number (ordering="payer")."""

    cid: int
    pid: object
    order: Order


class Number(NamedTuple):
    """The payer's place for an order among those that spend its side of a channel, and whether to LOCK or ABORT it."""

    cid: int
    side: Literal[0, 1]
    pid: object
    what: str
    number: int
    signature: object
