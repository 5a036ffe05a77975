"""Payments as Lightning makes them: hash locks hop by hop, and a blockchain that settles disputes in time, or not.

- `wire=True` counts messages as on the wire. An update is an add or a fulfil, with a signature; a revocation with a
  signature; and a revocation: five messages in three flights, twice a hop (BOLT 2).
- `wire=False` is the abstract protocol: one message forwards a hop, and one comes back.
- `margin` is the time between the expiries of two hops, in blocks: 3 R + 2 G + 2 S of BOLT 2. Who cannot settle with
  its peer publishes on the chain, where a transaction is included some blocks later (`inclusion`); `loss` is the chance
  that this takes too long.

Serves: the rows "Lightning, on the wire" and "HTLC, abstract" of the cost table (S4), the latencies (S6, S7, S16), and
the figure on a congested chain.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from swarmbook.payments.outcomes import Outcome
from swarmbook.payments.payment_network import Payment, World
from swarmbook.payments.simulation import Node


def margin(reorganisation: int = 2, grace: int = 2, inclusion: int = 12) -> int:
    """cltv_expiry_delta of BOLT 2, in blocks: 3 R + 2 G + 2 S, which is 34 with the values of its example.

    reorganisation: R, the deepest reorganisation of the chain. grace: G, how long to wait for a peer. inclusion: S, the
    time until a transaction is included.
    """
    return 3 * reorganisation + 2 * grace + 2 * inclusion


class Wire(NamedTuple):
    """A message of an update. step: "add", "commit", "revoke" or "fulfil". flight: 1 to 3. what: "lock" or "settle"."""

    step: str
    flight: int
    what: str
    hop: int
    payment: int


class LightningParty(Node):
    """Takes part in the updates of its channels, and passes payments on.

    wire: whether messages are counted as on the wire. paid: hops that are settled, as (payment, hop), by anybody.
    """

    __slots__ = ("world", "wire", "paid")

    def __init__(self, name: str, world: World, wire: bool, paid: set[tuple[int, int]]) -> None:
        super().__init__(name, world.sim)
        self.world, self.wire, self.paid = world, wire, paid

    def received(self, sender: Node, m: Wire) -> None:
        """Answer a message of an update, and go on with the payment as soon as it allows."""
        payment = self.world.payments[m.payment]
        if m.step == "fulfil":  # the key may be passed on at once
            self.backwards(payment, m.hop)
        if not self.wire:
            if m.step == "add":
                self.forwards(payment, m.hop)
            return
        if m.step == "commit" and m.flight == 1:
            self.send(sender, Wire("revoke", 2, m.what, m.hop, m.payment))
            self.send(sender, Wire("commit", 2, m.what, m.hop, m.payment))
        elif m.step == "commit" and m.flight == 2:
            self.send(sender, Wire("revoke", 3, m.what, m.hop, m.payment))
        elif m.step == "revoke" and m.flight == 3:
            if m.what == "lock":
                self.forwards(payment, m.hop)
            else:
                self.settled(payment, m.hop)

    def begin(self, step: str, payment: Payment, hop: int) -> None:
        """Begin an update of a hop: as its payer the add, as its payee the fulfil."""
        to = self.world.party(payment.path[hop + (step == "add")])
        what = "lock" if step == "add" else "settle"
        self.send(to, Wire(step, 1, what, hop, payment.number))
        if self.wire:
            self.send(to, Wire("commit", 1, what, hop, payment.number))

    def forwards(self, payment: Payment, hop: int) -> None:
        """This payee of a hop holds its lock irrevocably."""
        if hop + 1 < len(payment.cids):
            self.begin("add", payment, hop + 1)
        else:
            self.world.mark(payment, "receiver safe")
            self.begin("fulfil", payment, hop)

    def backwards(self, payment: Payment, hop: int) -> None:
        """This payer of a hop has learned the key."""
        if not self.wire:
            self.settled(payment, hop)
        if hop == 0:
            self.world.mark(payment, "receipt")
        else:
            self.begin("fulfil", payment, hop - 1)

    def settled(self, payment: Payment, hop: int) -> None:
        self.world.mark(payment, "settled", last=True)
        self.paid.add((payment.number, hop))

    on = {Wire: received}


class Lightning(World):
    """Honest runs of the hash-locked protocol. Disputes on the chain are not run; `loss` says how often they fail."""

    name = "Lightning"

    def __init__(self, *args, wire: bool = True, **more) -> None:
        super().__init__(*args, **more)
        self.wire = wire
        self.paid: set[tuple[int, int]] = set()

    def new_party(self, name: str) -> LightningParty:
        return LightningParty(name, self, self.wire, self.paid)

    def pay(self, path: Sequence[str], amount: int, at: float | None = None, fee: int = 0) -> Payment:
        """Start a payment, now or at a time."""
        at = self.sim.now if at is None else at
        payment = self.new_payment(path, amount, fee, at)
        sender = self.party(path[0])
        self.sim.timer(sender, at, sender.begin, ("add", payment, 0))
        return payment

    def outcomes(self, payment: Payment) -> list[str]:
        paid = [(payment.number, hop) in self.paid for hop in range(len(payment.cids))]
        return [Outcome.PAID if settled else Outcome.NEVER_LOCKED for settled in paid]

    def receipt(self, payment: Payment) -> bool:
        return "receipt" in payment.times

    def total(self, party: str) -> int:
        total = self.initial(party)
        for number, hop in self.paid:
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
