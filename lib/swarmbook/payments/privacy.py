"""What members and colluding parties can tell: two games, played against the protocols message by message.

- `views` is what the members of all committees receive in one payment. In SyncPCN without a dispute it is the same for
  any amount, apart from digests and signatures (R9). In PSyncPCN the order tells everything.
- `link` plays relationship anonymity (R10). Two equal payments share one honest party; who corrupts the parties before
  and behind it guesses which sender pays which receiver. With one hash for the whole path it compares hashes. With
  points there is nothing to compare, but the order of arrival is left, which no lock hides.

Serves: the figure of advantages; claims S14 and S15.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np

from swarmbook.errors import whole
from swarmbook.payments.payment_network import Topology, World, line
from swarmbook.payments.psyncpcn import Order, PSyncPCN, Share
from swarmbook.payments.signatures import Keys
from swarmbook.payments.simulation import Simulation, within
from swarmbook.payments.syncpcn import SyncPCN

PROTOCOLS = {"SyncPCN": SyncPCN, "PSyncPCN": partial(PSyncPCN, ordering="none")}  # payments do not compete
REAL = {**PROTOCOLS, "SyncPCN": partial(SyncPCN, lock="point")}  # with locks that are one-way


def views(world: World, amount: int) -> list[tuple]:
    """What members receive in a payment of this amount over the whole path: (time, member, kind, message).

    Digests, signatures and keys are replaced by a mark, since they tell nothing by themselves.
    """
    path = [f"u{i}" for i in range(len(world.topology.channels) + 1)]
    world.pay(path, amount)
    world.run()
    return [
        (event.time, event.node, event.kind, _opaque(event.message))
        for event in world.sim.trace
        if event.what == "deliver" and event.node.startswith("C")
    ]


def _opaque(value: object) -> object:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, int) and value > 2**32:
        return "a random number"
    if isinstance(value, tuple):
        return tuple(map(_opaque, value))
    return value


def same_views(kind: str, amounts: tuple[int, int]) -> bool:
    """Whether members see the same for two amounts, apart from digests, signatures and keys (R9)."""
    first, second = (views(_traced(kind, 2), amount) for amount in amounts)
    return first == second


def _traced(kind: str, hops: int) -> World:
    return REAL[kind](line(hops, balance=1000), sim=Simulation(trace=True), keys=Keys("cached"))


def guess_amount(kind: str, trials: int, rng: np.random.Generator, amounts: tuple[int, int] = (123, 457)) -> np.ndarray:
    """Whether a member guesses right which of two amounts is paid, in each trial [trials].

    It reads the order if it gets one. Otherwise it takes the parity of the last digest that it was shown.
    """
    right = []
    for _ in range(whole("trials", trials, 1)):
        truth = int(rng.integers(2))
        seed = int(rng.integers(2**31))
        sim, keys = Simulation(trace=True), Keys("cached", seed)
        world = PROTOCOLS[kind](line(1, balance=1000), sim=sim, keys=keys, seed=seed)
        world.pay(["u0", "u1"], amounts[truth])
        world.run()
        seen = [e.message for e in world.sim.trace if e.what == "deliver" and e.node == "C1.1"]
        orders = [m if isinstance(m, Order) else m.order for m in seen if isinstance(m, Order | Share)]
        guess = amounts.index(orders[0].amounts[0]) if orders else seen[-1].root[0] % 2
        right.append(guess == truth)
    return np.array(right)


CROSSING = Topology(
    (
        *(("s0", "before", 1000, 0), ("s1", "before", 1000, 0), ("before", "shared", 1000, 0)),
        *(("shared", "behind", 1000, 0), ("behind", "r0", 1000, 0), ("behind", "r1", 1000, 0)),
    )
)


def link(lock: str, trials: int, rng: np.random.Generator, timing: bool = False) -> np.ndarray:
    """Whether the adversary links senders and receivers rightly, in each trial [trials].

    lock: "point", "mock" or "hash" (`lock_conditions`). Two equal payments start at once, s0 and s1 pay r0 and r1 or r1
    and r0, through `before` and `behind`, which are corrupted, and `shared`, which is honest. With timing=True the
    guess rests on the order of arrival; else on the conditions of locks, and on a coin where they tell nothing.
    """
    right = []
    for _ in range(whole("trials", trials, 1)):
        crossed = int(rng.integers(2))
        delays = np.random.default_rng(rng.integers(2**31))
        sim = Simulation(within(1.0, delays), trace=True)
        world = SyncPCN(CROSSING, sim=sim, lock=lock, seed=int(rng.integers(2**31)))
        for sender in rng.permutation(2):
            receiver = sender ^ crossed
            world.pay([f"s{sender}", "before", "shared", "behind", f"r{receiver}"], 10)
        world.run()
        before, behind = (list(_locks(world, name)) for name in ("before", "behind"))
        if timing:
            guess = int((before[0][0] == "s0") != (behind[0][1] == "r0"))
        else:
            pairs = {(a[0], b[1]) for a in before for b in behind if a[2] == b[2]}
            guess = int(("s0", "r1") in pairs) if pairs else int(rng.integers(2))
        right.append(guess == crossed)
    return np.array(right)


def _locks(world: SyncPCN, name: str) -> Iterable[tuple[str, str, object]]:
    """What a corrupted party sees of each payment, in the order of arrival: who is before it, who behind, the lock."""
    node = world.party(name)
    arrived = [e.message for e in world.sim.trace if e.what == "deliver" and e.node == name and e.kind == "Propose"]
    for change in (message.change for message in arrived):
        if change.what != "lock":
            continue
        transit = node.inbound[change.lock.pid]
        before, behind = node.ends[transit.incoming[0]].peer.name, node.ends[transit.outgoing[0]].peer.name
        condition = transit.outgoing[1].condition if name == "before" else transit.incoming[1].condition
        yield before, behind, condition
