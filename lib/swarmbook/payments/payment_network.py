"""What all payment protocols here have in common: channels, payments, who is honest, and what is written down of each.

- a `Topology` lists channels (left, right, balance, balance); `line` is a path of n hops, u0 to un
- a `World` runs one protocol over it: `pay` starts a payment along a path, `run` lets everything happen, and
  `outcomes` and `total` say how each hop ended and what an honest party holds
- a `Payment` keeps the times at which something first became true, which the protocols report through `World.mark`
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from swarmbook.errors import ConfigError
from swarmbook.payments.signatures import Committee, Keys
from swarmbook.payments.simulation import Node, Simulation

HOPS = PAID, REFUNDED, LOCKED, NEVER = "Paid", "Refunded", "Locked", "never locked"


@dataclass(frozen=True)
class Topology:
    """Channels (left, right, balance of left, balance of right), and f of the committees, each of 3 f + 1 members."""

    channels: tuple[tuple[str, str, int, int], ...]
    faulty: int = 1

    def __post_init__(self) -> None:
        for channel in self.channels:
            if channel[0] == channel[1] or min(channel[2:]) < 0:
                raise ConfigError(f"{channel} is no channel: it needs two parties, and balances of at least 0")
        if self.faulty < 0:
            raise ConfigError(f"faulty={self.faulty} is no number of members: give 0 or more")

    @property
    def size(self) -> int:
        """m = 3 f + 1."""
        return 3 * self.faulty + 1


def line(hops: int, faulty: int = 1, balance: int = 100, other: int = 100) -> Topology:
    """u0 - u1 - ... - un; every payer has `balance`, every payee `other` on its side."""
    if hops < 1:
        raise ConfigError(f"a path of {hops} hops leads nowhere: give at least 1")
    return Topology(tuple((f"u{i}", f"u{i + 1}", balance, other) for i in range(hops)), faulty)


@dataclass
class Payment:
    """One payment: its path of parties and channels, amounts hop by hop, and when things happened (first, or last)."""

    number: int
    path: tuple[str, ...]
    cids: tuple[int, ...]
    amounts: tuple[int, ...]
    start: float
    times: dict[str, float] = field(default_factory=dict)

    def time(self, what: str) -> float | None:
        """Time from the start, or None if it did not happen."""
        return self.times[what] - self.start if what in self.times else None


class World:
    """A protocol over a topology. Subclasses make the parties and members and implement `pay`.

    keys: how to sign. sim: the network. seed: of everything random in it, from a numpy SeedSequence.
    """

    name: ClassVar[str]
    private: ClassVar[bool] = False  # whether it claims privacy

    def __init__(self, topology: Topology, sim: Simulation | None = None, keys: Keys | None = None, seed: int = 0):
        self.topology, self.sim, self.keys = topology, sim or Simulation(), keys or Keys()
        self.rng = np.random.default_rng(np.random.SeedSequence(seed))
        self.payments: list[Payment] = []
        self.between: dict[frozenset[str], list[int]] = {}
        for cid, (left, right, *_) in enumerate(topology.channels):
            self.between.setdefault(frozenset((left, right)), []).append(cid)
        self.faulty: set[str] = set()  # names of parties and members that an adversary controls
        self._random: list[int] = []
        self._parties: dict[str, Node] = {}

    def random(self) -> int:
        """A random number of 63 bits, for nonces and names of payments."""
        if not self._random:
            self._random = self.rng.integers(1, 2**63, 256).tolist()
        return self._random.pop()

    def new_payment(self, path: Sequence[str], amount: int, fee: int, at: float) -> Payment:
        """ConfigError for an amount below 1, or a path that does not follow channels."""
        if amount < 1 or fee < 0:
            raise ConfigError(f"amount={amount} and fee={fee}: an amount is at least 1, a fee at least 0")
        cids = []
        for pair in zip(path, path[1:], strict=False):
            if frozenset(pair) not in self.between:
                raise ConfigError(f"no channel joins {pair[0]} and {pair[1]}: choose a path along channels")
            cids.append(self.between[frozenset(pair)][0])
        hops = len(cids)
        amounts = tuple(amount + fee * (hops - 1 - i) for i in range(hops))
        payment = Payment(len(self.payments), tuple(path), tuple(cids), amounts, at)
        self.payments.append(payment)
        return payment

    def mark(self, payment: Payment | None, what: str, last: bool = False) -> None:
        """Note the time at which something became true; with `last`, the last time it is said."""
        if payment is not None and (last or what not in payment.times):
            payment.times[what] = self.sim.now

    def corrupt(self, node: Node, *faults: object) -> None:
        """Hand a party or member over to the adversary."""
        self.faulty.add(node.name)
        node.faults = (*node.faults, *faults)

    def run(self, until: float = float("inf")) -> float:
        return self.sim.run(until)

    def side(self, cid: int, party: str) -> int:
        return self.topology.channels[cid].index(party)

    def initial(self, party: str) -> int:
        """What a party put into its channels."""
        return sum(c[2 + c.index(party)] for c in self.topology.channels if party in c[:2])

    def members(self, cid: int) -> list[Node]:
        raise NotImplementedError

    def party(self, name: str) -> Node:
        """The party of that name, made when it is first asked for."""
        if name not in self._parties:
            self._parties[name] = self.new_party(name)
        return self._parties[name]

    def new_party(self, name: str) -> Node:
        raise NotImplementedError

    def total(self, party: str) -> int:
        """What an honest party holds: its balances, what decided locks give it, and its own coins still locked."""
        raise NotImplementedError

    def outcomes(self, payment: Payment) -> list[str]:
        """How each hop ended: one of `HOPS`."""
        raise NotImplementedError

    def receipt(self, payment: Payment) -> bool:
        """Whether the sender holds a receipt that it can show to others."""
        raise NotImplementedError

    def opposite(self) -> list[tuple]:
        """(cid, payment or lock, two outcomes) for which two opposite certificates exist, or two states of a number."""
        raise NotImplementedError

    def bad_members(self, cid: int) -> int:
        return sum(member.name in self.faulty for member in self.members(cid))

    def correct(self, cid: int) -> bool:
        """Whether at most f members of this channel's committee are faulty."""
        return self.bad_members(cid) <= self.topology.faulty


def committee(cid: int, size: int) -> Committee:
    return Committee(tuple(f"C{cid + 1}.{i + 1}" for i in range(size)))
