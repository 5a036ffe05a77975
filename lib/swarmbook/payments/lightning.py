"""Payments as Lightning makes them: hash locks hop by hop, and a blockchain that settles disputes in time, or not.

- `wire=True` counts messages as on the wire. An update is an add, a fulfil or a fail, with a signature; a revocation
  with a signature; and a revocation: five messages in three flights, twice a hop (BOLT 2).
- `wire=False` is the abstract protocol: one message forwards a hop, and one comes back.
- Each party keeps its own account of its channels. It adds no lock for which its side has too little, and takes none
  for which the other side has; then the payment fails backwards.
- The chain is not run. A lock whose payee or payer does not answer stays locked, and the verdicts say so.
- `margin` is the time between the expiries of two hops, in blocks: 3 R + 2 G + 2 S of BOLT 2. Who cannot settle with
  its peer publishes on the chain, where a transaction is included some blocks later (`inclusion`); `loss` is the chance
  that this takes too long.

Serves: the rows "Lightning, on the wire" and "HTLC, abstract" of the cost table (S4), the latencies, and
the figure on a congested chain.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from swarmbook.errors import ConfigError, finite, whole
from swarmbook.payments.outcomes import Outcome
from swarmbook.payments.payment_network import Payment, World
from swarmbook.payments.simulation import Node


def margin(reorganisation: int = 2, grace: int = 2, inclusion: int = 12) -> int:
    """cltv_expiry_delta of BOLT 2, in blocks: 3 R + 2 G + 2 S, which is 34 with the values of its example.

    reorganisation: R, the deepest reorganisation of the chain. grace: G, how long to wait for a peer. inclusion: S, the
    time until a transaction is included.
    """
    whole("reorganisation", reorganisation), whole("grace", grace), whole("inclusion", inclusion)
    return 3 * reorganisation + 2 * grace + 2 * inclusion


class Wire(NamedTuple):
    """A message of an update of a hop.

    step: what it says: "add", "fulfil" or "fail", "commit", "revoke". flight: 1 to 3. what: the step with which the
    update began.
    """

    step: str
    flight: int
    what: str
    hop: int
    payment: int


class LightningParty(Node):
    """Takes part in the updates of its channels, and passes payments on.

    wire: whether messages are counted as on the wire. coins: of each of its channels, those of the left and the right
    party that are not locked, as this party has them. hops: how the hops that it pays or is paid stand (`Outcome`), by
    payment and hop. updates: those under way, by (what, payment, hop); one that this party has "begun"; or of the other
    party, of which it has the signature alone ("signed"), has taken the content ("accepted"), or both ("answered").

    A party never has more in its own account than in that of its peer, so that no lock of an honest one is refused. Its
    own account loses a coin when it sends the lock, and gains one when that is irrevocable. The account of its peer
    loses the coin when the lock arrives, and gains one as soon as the peer has agreed.
    """

    __slots__ = ("world", "wire", "coins", "hops", "updates")

    def __init__(self, name: str, world: "Lightning", wire: bool) -> None:
        super().__init__(name, world.sim)
        self.world, self.wire = world, wire
        self.coins: dict[int, list[int]] = {}
        self.hops: dict[tuple[int, int], str] = {}
        self.updates: dict[tuple[str, int, int], str] = {}

    def channel(self, cid: int) -> list[int]:
        """The coins of the left and the right party that are not locked, as this party has them."""
        if cid not in self.coins:
            self.coins[cid] = list(self.world.topology.channels[cid][2:])
        return self.coins[cid]

    def account(self, payment: Payment, hop: int) -> tuple[list[int], int, int]:
        """The coins of a hop's channel, the side that pays, and the amount."""
        cid = payment.cids[hop]
        return self.channel(cid), self.world.side(cid, payment.path[hop]), payment.amounts[hop]

    def received(self, sender: Node, m: Wire) -> None:
        """Take part in an update, and go on with the payment as soon as it allows."""
        payment, hop, what = self.world.payments[m.payment], m.hop, m.what
        ends = payment.path[hop : hop + 2]
        begun_by, other = ends if what == "add" else ends[::-1]
        if (sender.name, self.name) != ((other, begun_by) if m.flight == 2 else (begun_by, other)):
            return
        key = what, m.payment, hop
        stage = self.updates.get(key)
        if m.step == what:
            if stage in (None, "signed") and self.accepts(what, payment, hop):
                if self.wire:
                    self.agree(sender, key, "accepted", stage)
                else:
                    self.ended(what, payment, hop)
        elif m.step == "commit" and m.flight == 1:
            if stage in (None, "accepted"):
                self.agree(sender, key, "signed", stage)
        elif m.step == "commit" and stage == "begun":
            del self.updates[key]
            if what == "fulfil":
                self.credited(payment, hop)
            self.send(sender, Wire("revoke", 3, what, hop, m.payment))
        elif m.step == "revoke" and m.flight == 3 and stage == "answered":
            del self.updates[key]
            self.ended(what, payment, hop)

    def agree(self, sender: Node, key: tuple[str, int, int], now: str, before: str | None) -> None:
        """One half of the other party's update is here; answer if both are. Messages may overtake each other."""
        what, number, hop = key
        self.updates[key] = now if before is None else "answered"
        if before is not None:
            self.send(sender, Wire("revoke", 2, what, hop, number))
            self.send(sender, Wire("commit", 2, what, hop, number))

    def begin(self, what: str, payment: Payment, hop: int) -> None:
        """Begin an update of a hop: as its payer the add, as its payee the fulfil or the fail."""
        to = self.world.party(payment.path[hop + (what == "add")])
        self.send(to, Wire(what, 1, what, hop, payment.number))
        if self.wire:
            self.updates[what, payment.number, hop] = "begun"
            self.send(to, Wire("commit", 1, what, hop, payment.number))

    def accepts(self, what: str, payment: Payment, hop: int) -> bool:
        """Take what the other party's update says into the own account, if it is right."""
        (coins, side, amount), name = self.account(payment, hop), (payment.number, hop)
        if what == "add":
            if name in self.hops or coins[side] < amount:
                return False
            coins[side] -= amount
            self.hops[name] = Outcome.LOCKED
            return True
        if self.hops.get(name) != Outcome.LOCKED:
            return False
        if what == "fulfil":
            coins[1 - side] += amount
            self.hops[name] = Outcome.PAID
            self.backwards(payment, hop)
        return True

    def ended(self, what: str, payment: Payment, hop: int) -> None:
        """The other party's update is irrevocable."""
        if what == "add":
            self.forwards(payment, hop)
        elif what == "fulfil":
            self.world.mark(payment, "settled", last=True)
            if not self.wire:
                self.world.party(payment.path[hop + 1]).credited(payment, hop)
        elif self.hops[payment.number, hop] == Outcome.LOCKED:
            self.unlocked(payment, hop)
            self.failed(payment, hop)

    def lock(self, payment: Payment, hop: int) -> None:
        """As the payer of a hop: set its coins aside, or fail the payment if there are too few."""
        coins, side, amount = self.account(payment, hop)
        if coins[side] < amount:
            self.world.mark(payment, "too little")
            self.failed(payment, hop)
            return
        coins[side] -= amount
        self.hops[payment.number, hop] = Outcome.LOCKED
        self.begin("add", payment, hop)

    def forwards(self, payment: Payment, hop: int) -> None:
        """This payee of a hop holds its lock irrevocably."""
        if hop + 1 < len(payment.cids):
            self.lock(payment, hop + 1)
        else:
            self.world.mark(payment, "receiver safe")
            self.world.mark(payment, "receipt exists")
            self.begin("fulfil", payment, hop)

    def backwards(self, payment: Payment, hop: int) -> None:
        """This payer of a hop has learned the key, and may pass it on at once."""
        if hop == 0:
            self.world.mark(payment, "receipt")
        else:
            self.begin("fulfil", payment, hop - 1)

    def failed(self, payment: Payment, hop: int) -> None:
        """Nothing will come of a hop, which this party would have paid: give the one before it back."""
        if hop == 0:
            self.world.mark(payment, "failed")
        else:
            self.unlocked(payment, hop - 1)
            self.begin("fail", payment, hop - 1)

    def unlocked(self, payment: Payment, hop: int) -> None:
        """The payer has the coins of a hop again."""
        coins, side, amount = self.account(payment, hop)
        coins[side] += amount
        self.hops[payment.number, hop] = Outcome.REFUNDED

    def credited(self, payment: Payment, hop: int) -> None:
        """This payee has the coins of a hop."""
        coins, side, amount = self.account(payment, hop)
        coins[1 - side] += amount
        self.hops[payment.number, hop] = Outcome.PAID

    on = {Wire: received}


class Lightning(World):
    """The hash-locked protocol, without its disputes on the chain: `loss` says how often they fail.

    A lock on which a party does not act any more is therefore left (R5), and a key that its payer ignores is not paid
    for (R3).
    """

    name = "Lightning"

    def __init__(self, *args, wire: bool = True, **more) -> None:
        super().__init__(*args, **more)
        if not isinstance(wire, bool):
            raise ConfigError(f"wire={wire!r} is refused: give True or False")
        self.wire = wire

    def new_party(self, name: str) -> LightningParty:
        return LightningParty(name, self, self.wire)

    def pay(self, path: Sequence[str], amount: int, at: float | None = None, fee: int = 0) -> Payment:
        """Start a payment, now or at a time."""
        at = self.starts(at)
        payment = self.new_payment(path, amount, fee, at)
        sender = self.party(path[0])
        self.sim.timer(sender, at, sender.lock, (payment, 0))
        return payment

    def outcomes(self, payment: Payment) -> list[str]:
        return [self.outcome(payment, hop) for hop in range(len(payment.cids))]

    def outcome(self, payment: Payment, hop: int) -> str:
        """How a hop stands, as an honest one of its two parties has it; that it is paid weighs more."""
        ends = payment.path[hop : hop + 2]
        honest = [name for name in ends if name not in self.faulty] or ends
        views = [self.party(name).hops.get((payment.number, hop), Outcome.NEVER_LOCKED) for name in honest]
        weights = Outcome.PAID, Outcome.REFUNDED, Outcome.LOCKED, Outcome.NEVER_LOCKED
        return next(outcome for outcome in weights if outcome in views)

    def receipt(self, payment: Payment) -> bool:
        return "receipt" in payment.times

    def locks(self, party: str, cid: int | None = None) -> list[tuple[Payment, int]]:
        """The locked hops that a party pays or is paid, as it has them: of one channel, or of all."""
        hops = [(self.payments[number], hop, stands) for (number, hop), stands in self.party(party).hops.items()]
        return [
            (payment, hop)
            for payment, hop, stands in hops
            if stands == Outcome.LOCKED and cid in (None, payment.cids[hop])
        ]

    def total(self, party: str) -> int:
        node = self.party(party)
        free = self.initial(party) + sum(
            coins[side] - self.topology.channels[cid][2 + side]
            for cid, coins in node.coins.items()
            for side in [self.side(cid, party)]
        )
        return free + sum(payment.amounts[hop] for payment, hop in self.locks(party) if payment.path[hop] == party)

    # what verdicts ask

    def balances(self, cid: int) -> tuple[int, ...]:
        honest = self.honest_parties(cid) or self.topology.channels[cid][:2]
        return self._view(cid, honest[0])

    def _view(self, cid: int, party: str) -> tuple[int, ...]:
        locked = [payment.amounts[hop] for payment, hop in self.locks(party, cid)]
        return (*self.party(party).channel(cid), *locked)

    def invariants(self, cid: int) -> list[str]:
        wrong, capacity = [], sum(self.topology.channels[cid][2:])
        for party in self.honest_parties(cid):
            view = self._view(cid, party)
            wrong += [f"I1: {party} {view}"] * (sum(view) != capacity)
            wrong += [f"I2: {party} {view}"] * (min(view) < 0)
        return wrong


def inclusion(rng: np.random.Generator, mean: float, shape: int | tuple[int, ...]) -> np.ndarray:
    """Blocks until a transaction is included: geometric with this mean, at least 1."""
    finite("mean", mean, 0)
    return rng.geometric(1 / max(mean, 1.0), shape)


def loss(delta: int, mean: float, trials: int, rng: np.random.Generator, grace: int = 2) -> float:
    """Chance that a party between two hops, whose margin is `delta` blocks, pays downstream and is not paid upstream.

    Downstream the key is published at the last moment and included after some blocks, in time; the party sees it,
    waits `grace` blocks for a peer that does not answer, and publishes the key upstream, where it must be included
    within the margin. Inclusion takes `mean` blocks on average (`inclusion`).
    """
    whole("delta", delta), whole("trials", trials, 1), whole("grace", grace)
    return float((grace + inclusion(rng, mean, trials) > delta).mean())
