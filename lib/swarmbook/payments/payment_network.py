"""What all payment protocols here have in common: channels, payments, who is honest, and what is written down of each.

- A `Topology` lists channels. `line` is a path of n hops, from u0 to un.
- A `World` runs one protocol over a topology. `pay` starts a payment along a path, and `run` lets everything happen.
- Verdicts ask the world, whichever protocol it runs: `outcomes` and `total` say how hops ended and what a party holds;
  `balances`, `stale_closes`, `invariants`, `progress` and `opposite` say what its committees have to keep to.
- A `Payment` keeps the times at which something first became true, which the protocols report through `World.mark`.

Serves: every figure, table and claim of the notebook that runs a protocol.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from swarmbook.errors import ConfigError
from swarmbook.payments.signatures import Committee, Keys
from swarmbook.payments.simulation import Node, Simulation


@dataclass(frozen=True)
class Topology:
    """Channels (left party, right party, coins of the left, coins of the right), each with a committee.

    faulty: f, the most members of a committee that may be faulty; it has 3 f + 1 members. Raises ConfigError for a
    channel of one party with itself, a negative balance or a negative f.
    """

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
        """m = 3 f + 1, the members of a committee."""
        return 3 * self.faulty + 1

    @property
    def quorum(self) -> int:
        """m - f = 2 f + 1."""
        return self.size - self.faulty


def line(hops: int, faulty: int = 1, balance: int = 100, other: int = 100) -> Topology:
    """The path u0 - u1 - ... - un. The left party of every channel has `balance` coins, the right one `other`."""
    if hops < 1:
        raise ConfigError(f"a path of {hops} hops leads nowhere: give at least 1")
    return Topology(tuple((f"u{i}", f"u{i + 1}", balance, other) for i in range(hops)), faulty)


@dataclass
class Payment:
    """One payment along a path of parties and the channels between them, with the amount of each hop.

    start: when it was asked for. pids: the names of its locks or of its order. times: when something was first true, or
    last (`World.mark`).
    """

    number: int
    path: tuple[str, ...]
    cids: tuple[int, ...]
    amounts: tuple[int, ...]
    start: float
    pids: list[object] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)

    def time(self, what: str) -> float | None:
        """How long after the start something happened, or None if it did not."""
        return self.times[what] - self.start if what in self.times else None


class World:
    """A protocol over a topology. Subclasses make the parties and members, and implement `pay`.

    sim: the network. keys: how to sign. seed: of everything random in the protocol, for a numpy SeedSequence.
    """

    name: ClassVar[str]
    delegates: ClassVar[bool] = False  # whether committees hand payments to each other, instead of parties

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
        self._committees: dict[int, Committee] = {}
        self._payments: dict[object, Payment] = {}

    def random(self) -> int:
        """A random number of 63 bits, for nonces and names of payments."""
        if not self._random:
            self._random = self.rng.integers(1, 2**63, 256).tolist()
        return self._random.pop()

    def new_payment(self, path: Sequence[str], amount: int, fee: int, at: float) -> Payment:
        """Write a payment down. Each hop carries the fees of the hops after it.

        Raises ConfigError for an amount below 1, a fee below 0, or a path that does not follow channels.
        """
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

    def register(self, pid: object, payment: Payment) -> None:
        """Note that the lock or order of this name belongs to a payment."""
        payment.pids.append(pid)
        self._payments[pid] = payment

    def payment_of(self, pid: object) -> Payment | None:
        """The payment to which the lock or order of this name belongs, or None for an unknown name."""
        return self._payments.get(pid)

    def mark(self, payment: Payment | None, what: str, last: bool = False) -> None:
        """Note the time at which something became true: the first time it is said, or with `last` the last time."""
        if payment is not None and (last or what not in payment.times):
            payment.times[what] = self.sim.now

    def corrupt(self, node: Node, *faults: object) -> None:
        """Hand a party or member over to the adversary."""
        self.faulty.add(node.name)
        node.faults = (*node.faults, *faults)

    def run(self, until: float = float("inf")) -> float:
        """Let everything happen that is due by then; returns the time."""
        return self.sim.run(until)

    def side(self, cid: int, party: str) -> int:
        """0 if this party is the left one of the channel, 1 if it is the right one."""
        return self.topology.channels[cid].index(party)

    def initial(self, party: str) -> int:
        """The coins that a party put into its channels."""
        return sum(c[2 + c.index(party)] for c in self.topology.channels if party in c[:2])

    def committee(self, cid: int) -> Committee:
        """The names of a channel's members: C1.1, C1.2, ... for the channel 0."""
        if cid not in self._committees:
            self._committees[cid] = Committee(tuple(f"C{cid + 1}.{i + 1}" for i in range(self.topology.size)))
        return self._committees[cid]

    def members(self, cid: int) -> list:
        """The members of a channel's committee, made when they are first asked for; none by default."""
        return []

    def honest(self, cid: int) -> list:
        """The members of a channel's committee that no adversary controls."""
        return [member for member in self.members(cid) if member.name not in self.faulty]

    def honest_parties(self, cid: int) -> list[str]:
        """The names of a channel's parties that no adversary controls, the left one first."""
        return [name for name in self.topology.channels[cid][:2] if name not in self.faulty]

    def bad_members(self, cid: int) -> int:
        return len(self.members(cid)) - len(self.honest(cid))

    def correct(self, cid: int) -> bool:
        """Whether at most f members of this channel's committee are faulty."""
        return self.bad_members(cid) <= self.topology.faulty

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
        """How each hop of a payment stands."""
        raise NotImplementedError

    def receipt(self, payment: Payment) -> bool:
        """Whether the sender holds a receipt that it can show to others."""
        raise NotImplementedError

    # what verdicts ask of the committees; a protocol without committees keeps to all of it

    def balances(self, cid: int) -> tuple[int, ...]:
        """The coins in a channel as its honest parties or members have them: left, right, and those of each lock."""
        return self.topology.channels[cid][2:]

    def opposite(self) -> list[tuple]:
        """(cid, payment or lock, two decisions) for which quorums signed two opposite decisions."""
        return []

    def stale_closes(self, cid: int) -> list[tuple[str, str]]:
        """What a quorum backed in this channel and a close could still miss: (whom it concerns, what)."""
        return []

    def invariants(self, cid: int) -> list[str]:
        """Which of I1, I2, I3 and I7 the honest parties and members of a channel break (`requirements.invariants`)."""
        return []

    def progress(self, member: Node) -> tuple[int, Mapping[object, str]]:
        """The number of the newest state that a member has accepted, and its decision about each lock or order."""
        return 0, {}
