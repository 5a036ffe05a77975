"""Payments as Lightning makes them: hash locks hop by hop, and a blockchain that settles disputes in time, or not.

- `wire=True` counts messages as on the wire: an update is add or fulfil with a signature, a revocation with a
  signature, a revocation: five messages in three flights, twice a hop (BOLT 2)
- `wire=False` is the abstract protocol: one message a hop forwards, one back
- `deltas` are the hops' margins in blocks, BOLT 2's 3 R + 2 G + 2 S (`margin`); who cannot settle with its peer
  publishes on the chain, where a transaction is included some blocks later (`inclusion`)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from swarmbook.payments.payment_network import NEVER, PAID, Payment, World
from swarmbook.payments.simulation import Node


def margin(reorganisation: int = 2, grace: int = 2, inclusion: int = 12) -> int:
    """cltv_expiry_delta of BOLT 2 in blocks: 3 R + 2 G + 2 S; 34 with the values of its example."""
    return 3 * reorganisation + 2 * grace + 2 * inclusion


class Wire(NamedTuple):
    """A flight's message. step: add, commit, revoke or fulfil; flight: 1 to 3; what: the update that it is part of."""

    step: str
    flight: int
    what: str
    hop: int
    payment: int


class Party(Node):
    """Takes part in the flights of its channels, and passes payments on."""

    __slots__ = ("world",)

    def __init__(self, name: str, world: "Lightning") -> None:
        super().__init__(name, world.sim)
        self.world = world

    def received(self, sender: Node, m: Wire) -> None:
        world, payment = self.world, self.world.payments[m.payment]
        if m.step == "fulfil":  # the key may be passed on at once
            world.backwards(payment, m.hop)
        if not world.wire:
            if m.step == "add":
                world.forwards(payment, m.hop)
            return
        if m.step == "commit" and m.flight == 1:
            self.send(sender, Wire("revoke", 2, m.what, m.hop, m.payment))
            self.send(sender, Wire("commit", 2, m.what, m.hop, m.payment))
        elif m.step == "commit" and m.flight == 2:
            self.send(sender, Wire("revoke", 3, m.what, m.hop, m.payment))
        elif m.step == "revoke" and m.flight == 3:
            if m.what == "lock":
                world.forwards(payment, m.hop)
            else:
                world.mark(payment, "settled", last=True)
                world.paid[payment.number, m.hop] = True


Party.on = {Wire: Party.received}


class Lightning(World):
    """Honest runs of the hash-locked protocol; disputes on the chain are counted by `loss`."""

    name = "Lightning"

    def __init__(self, *args, wire: bool = True, **more) -> None:
        super().__init__(*args, **more)
        self.wire = wire
        self.paid: dict[tuple[int, int], bool] = {}

    def new_party(self, name: str) -> Party:
        return Party(name, self)

    def members(self, cid: int) -> list[Node]:
        return []

    def pay(self, path: Sequence[str], amount: int, at: float | None = None, fee: int = 0) -> Payment:
        at = self.sim.now if at is None else at
        payment = self.new_payment(path, amount, fee, at)
        self.sim.timer(self.party(path[0]), at, self.flight, ("add", payment, 0))
        return payment

    def flight(self, step: str, payment: Payment, hop: int) -> None:
        """Begin an update of a hop: the payer's add, or the payee's fulfil."""
        ends = self.party(payment.path[hop]), self.party(payment.path[hop + 1])
        sender, to = ends if step == "add" else ends[::-1]
        what = "lock" if step == "add" else "settle"
        sender.send(to, Wire(step, 1, what, hop, payment.number))
        if self.wire:
            sender.send(to, Wire("commit", 1, what, hop, payment.number))

    def forwards(self, payment: Payment, hop: int) -> None:
        """The payee of a hop holds its lock irrevocably."""
        if hop + 1 < len(payment.cids):
            self.flight("add", payment, hop + 1)
        else:
            self.mark(payment, "receiver safe")
            self.flight("fulfil", payment, hop)

    def backwards(self, payment: Payment, hop: int) -> None:
        if not self.wire:
            self.paid[payment.number, hop] = True
            self.mark(payment, "settled", last=True)
        if hop == 0:
            self.mark(payment, "receipt")
        else:
            self.flight("fulfil", payment, hop - 1)

    def outcomes(self, payment: Payment) -> list[str]:
        return [PAID if self.paid.get((payment.number, hop)) else NEVER for hop in range(len(payment.cids))]

    def receipt(self, payment: Payment) -> bool:
        return "receipt" in payment.times

    def opposite(self) -> list[tuple]:
        return []

    def total(self, party: str) -> int:
        total = self.initial(party)
        for (number, hop), _ in self.paid.items():
            payment = self.payments[number]
            amount = payment.amounts[hop]
            total += amount * ((payment.path[hop + 1] == party) - (payment.path[hop] == party))
        return total


def inclusion(rng: np.random.Generator, mean: float, shape: int | tuple[int, ...]) -> np.ndarray:
    """Blocks until a transaction is included: geometric with this mean, at least 1."""
    return rng.geometric(1 / max(mean, 1.0), shape)


def loss(delta: int, mean: float, trials: int, rng: np.random.Generator, grace: int = 2) -> float:
    """Chance that a party between two hops, whose margin is `delta` blocks, pays downstream and is not paid upstream.

    Downstream the key is published at the last moment and included after some blocks, in time; the party sees it,
    waits `grace` blocks for a peer that does not answer, and publishes the key upstream, where it must be included
    within the margin. Inclusion takes `mean` blocks on average (`inclusion`).
    """
    return float((grace + inclusion(rng, mean, trials) > delta).mean())
