"""What all payment protocols here have in common: channels, payments, who is honest, and what is written down of each.

- A `Topology` lists channels. `line` is a path of n hops, from u0 to un.
- A `World` runs one protocol over a topology. `pay` starts a payment along a path, and `run` lets everything happen.
  What no protocol could pay is refused before anything is signed or sent, in all worlds alike (`World.new_payment`).
- Verdicts ask the world, whichever protocol it runs: `outcomes` and `total` say how hops ended and what a party holds;
  `balances`, `stale_closes`, `invariants`, `progress` and `opposite` say what its committees have to keep to.
- A `Payment` keeps the times at which something first became true, which the protocols report through `World.mark`.

Serves: every figure, table and claim of the notebook that runs a protocol.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np

from swarmbook import tables
from swarmbook.errors import ConfigError, finite, whole
from swarmbook.payments.signatures import Committee, Keys
from swarmbook.payments.simulation import Node, Simulation


@dataclass(frozen=True)
class Topology:
    """Channels (left party, right party, coins of the left, coins of the right), each with a committee.

    faulty: f, the most members of a committee that may be faulty; it has 3 f + 1 members. Raises ConfigError for a
    channel of one party with itself, coins that are no whole numbers of at least 0, a channel without coins, a party
    with the name of a member, and an f that is no whole number of at least 0.
    """

    channels: tuple[tuple[str, str, int, int], ...]
    faulty: int = 1

    def __post_init__(self) -> None:
        for channel in self.channels:
            if not isinstance(channel, tuple) or len(channel) != 4 or channel[0] == channel[1]:
                raise ConfigError(f"{channel!r} is no channel: give two parties, and the coins of each")
            for name in channel[:2]:
                if not isinstance(name, str) or not name or re.fullmatch(r"C\d+\.\d+", name):
                    raise ConfigError(f"{name!r} cannot be a party: give a text, not the name of a member as C1.2 is")
            if whole(f"the coins of {channel[0]}", channel[2]) + whole(f"the coins of {channel[1]}", channel[3]) == 0:
                raise ConfigError(f"{channel} has no coins: give at least one to a party")
        whole("faulty", self.faulty)

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
    return Topology(tuple((f"u{i}", f"u{i + 1}", balance, other) for i in range(whole("hops", hops, 1))), faulty)


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
        self.names = dict.fromkeys(name for channel in topology.channels for name in channel[:2])
        self._passed: dict[frozenset[str], int] = {}  # payments so far between two parties with several channels
        self.faulty: set[str] = set()  # names of parties and members that an adversary controls
        self._random: list[int] = []
        self._parties: dict[str, Node] = {}
        self._committees: dict[int, Committee] = {}
        self._payments: dict[object, Payment] = {}

    def _repr_html_(self) -> str:
        said = f"{self.name}: {len(self.names)} parties, {len(self.topology.channels)} channels, at {self.sim.now:g} s"
        return tables.html(said, map(self._shown, self.payments))

    def _shown(self, payment: Payment) -> dict[str, object]:
        ended = ", ".join(str(outcome) for outcome in self.outcomes(payment))
        amounts = " ".join(map(str, payment.amounts))
        return {"payment": payment.number, "path": " ".join(payment.path), "amounts": amounts, "hops ended": ended}

    def random(self) -> int:
        """A random number of 63 bits, for nonces and names of payments."""
        if not self._random:
            self._random = self.rng.integers(1, 2**63, 256).tolist()
        return self._random.pop()

    def new_payment(self, path: Sequence[str], amount: int, fee: int, at: float) -> Payment:
        """Write a payment down. Each hop carries the fees of the hops after it.

        A hop between two parties with several channels takes one of those with the capacity for it, in turn. A sender
        knows capacities, and no balances but its own.

        Raises ConfigError for what no protocol could pay: an amount that is no whole number of at least 1, a fee that
        is none of at least 0, a path that is too short, does not follow channels or visits a party twice, a hop for
        which no channel has the capacity, and a time that is past. Protocols name locks by channel and what happens by
        party, and the paper's abstract speaks of paths from sender to receiver, so that loops are left out.
        """
        amount, fee, at = whole("amount", amount, 1), whole("fee", fee), self.starts(at)
        path = self.checked_path(path)
        hops = len(path) - 1
        amounts = tuple(amount + fee * (hops - 1 - i) for i in range(hops))
        cids = tuple(map(self._channel, pairwise(path), amounts))
        for pair in pairwise(path):
            if len(self.between[frozenset(pair)]) > 1:
                self._passed[frozenset(pair)] = self._passed.get(frozenset(pair), 0) + 1
        payment = Payment(len(self.payments), path, cids, amounts, at)
        self.payments.append(payment)
        return payment

    def checked_path(self, path: Sequence[str]) -> tuple[str, ...]:
        """A path along channels that visits no party twice; ConfigError for any other one."""
        if isinstance(path, str) or len(path) < 2:
            raise ConfigError(f"{path!r} is no path: give the names of at least two parties, from sender to receiver")
        for name in path:
            self.known(name)
        for name in path:
            if list(path).count(name) > 1:
                raise ConfigError(
                    f"the path {' '.join(path)} visits {name} twice, and locks and orders name a party's place by its "
                    "name: leave the loop out, or make a payment of each part"
                )
        for pair in pairwise(path):
            if frozenset(pair) not in self.between:
                raise ConfigError(f"no channel joins {pair[0]} and {pair[1]}: choose a path along channels")
        return tuple(path)

    def _channel(self, pair: tuple[str, str], amount: int) -> int:
        """The channel of a hop: of those with the capacity, the one whose turn it is."""
        cids = self.between[frozenset(pair)]
        capacities = [sum(self.topology.channels[cid][2:]) for cid in cids]
        fit = [cid for cid, capacity in zip(cids, capacities, strict=True) if capacity >= amount]
        if not fit:
            raise ConfigError(
                f"the hop from {pair[0]} to {pair[1]} would carry {amount} coins, and no channel of theirs holds more "
                f"than {max(capacities)}: pay less, or choose another path"
            )
        return fit[self._passed.get(frozenset(pair), 0) % len(fit)]

    def starts(self, at: float | None) -> float:
        """When a payment starts that is to start then, or now if None. ConfigError for a time that is past or none."""
        return self.sim.now if at is None else finite("at", at, self.sim.now)

    def known(self, name: str) -> str:
        """The name of a party of this topology; ConfigError for another one."""
        if name not in self.names:
            some = ", ".join(list(self.names)[:10]) + ", ..." * (len(self.names) > 10)
            raise ConfigError(f"unknown party {name!r}: the channels join {some}")
        return name

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
        self.sim.parses = True
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
        """The party of that name, made when it is first asked for. ConfigError for a name without a channel."""
        if name not in self._parties:
            self._parties[name] = self.new_party(self.known(name))
        return self._parties[name]

    def new_party(self, name: str) -> Node:
        raise NotImplementedError

    def direct(self, payment: Payment) -> bool:
        """Whether a payment is one update of a channel, which has no lock; most protocols have none such."""
        return False

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
