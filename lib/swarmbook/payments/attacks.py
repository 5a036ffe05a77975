"""Directed attacks on the protocols, random adversaries, and how losses grow with what goes wrong.

- `skipping` tries to take the fee of an honest party between two others.
- `split_votes` and `last_coins` are attacks with any number of faulty members, which succeed from f + 1 on.
- `synchronous_world` and `asynchronous_world` make a random adversary from a seed.
- `cell` and `channel_two_apart` play the impossibility with the protocols themselves.
- `loss_rate` is the share of payments in which an honest party loses, when messages take longer than SyncPCN assumes.

The file is a list of short experiments, and long for that reason alone.

Serves: the twin runs, the table of requirements, the figures of thresholds and of late messages; claims S1, S2 and S8
to S14.
"""

import numpy as np

from swarmbook.payments.adversary import (
    Careless,
    Deaf,
    Equivocating,
    Erratic,
    Fault,
    Forgetful,
    Forging,
    Late,
    Replaying,
    Selective,
    Shortcut,
    Silent,
    Wormhole,
    dispute,
)
from swarmbook.payments.channel_update import Cosign, Propose
from swarmbook.payments.payment_network import Payment, World, line
from swarmbook.payments.psyncpcn import PSyncPCN
from swarmbook.payments.requirements import check
from swarmbook.payments.simulation import Asynchronous, Simulation, at_random, stable_after, unit, within
from swarmbook.payments.syncpcn import Claim, SyncPCN, Timing

SAFETY = ("R1", "R2", "R3", "R4", "R5", "R6", "R8", "R11")


def names(hops: int) -> list[str]:
    """The parties of `line(hops)`."""
    return [f"u{i}" for i in range(hops + 1)]


def opening(message: object) -> bool:
    """Whether a payee proposes to open a lock."""
    return isinstance(message, Propose) and message.change.what == "open"


def split_votes(faulty: int, bad: int) -> SyncPCN:
    """Two faulty parties of one channel: some members get the claim, all the refund; `bad` ones vote for both."""
    world = SyncPCN(line(1, faulty))
    world.pay(names(1), 10)
    payer, payee = world.party("u0"), world.party("u1")
    world.corrupt(payer, Deaf(opening))
    members = world.members(0)
    for member in members[len(members) - bad :]:
        world.corrupt(member, Careless())
    told = [m.name for m in [*members[:faulty], *members[len(members) - bad :]]]
    world.corrupt(payee, Selective(told, kinds=(Claim,)))
    world.sim.timer(payer, world.timing.expiries(0.0, 1)[0] + 3.0, dispute, (payer, False))
    world.run()
    return world


def last_coins(faulty: int, bad: int) -> PSyncPCN:
    """Two orders for the same coins reach the honest members in two orders; `bad` members lock both."""
    half = {f"C1.{k + 1}": k % 2 for k in range(3 * faulty + 1 - bad)}

    def delay(sender, to, message):
        return 0.4 + 0.2 * (half.get(to.name, 0) == message.nonce % 2) if hasattr(message, "nonce") else 1.0

    world = PSyncPCN(line(1, faulty, balance=10, other=0), sim=Simulation(delay), ordering="none")
    for member in world.members(0)[3 * faulty + 1 - bad :]:
        world.corrupt(member, Careless())
    (_, first), (_, second) = world.order(names(1), 7), world.order(names(1), 7)
    while second.nonce % 2 == first.nonce % 2:
        world.payments.pop()
        _, second = world.order(names(1), 7)
    for order in (first, second):
        for member in world.members(0):
            world.party("u0").send(member, order)
    world.run()
    return world


def claim_world(
    offset: float, subset: tuple[int, ...], bad: tuple[int, ...] = (), trace: bool = False
) -> tuple[SyncPCN, Payment]:
    """A receiver that tells its payer nothing, and whose claim arrives at T_2 + offset at some members of C_2.

    subset: the members that get the claim; bad: those that equivocate, both by their numbers from 0.
    """
    world = SyncPCN(line(2), sim=Simulation(trace=trace))
    payment = world.pay(names(2), 10)
    expiry = world.timing.expiries(0.0, 2)[1]
    members = world.members(1)
    told = Selective([m.name for k, m in enumerate(members) if k in subset], kinds=(Claim,))
    late = Late(Claim, lambda to, m: expiry + offset, 1.0)
    world.corrupt(world.party("u2"), Silent(kinds=(Propose,), when=opening), told, late)
    for k in bad:
        world.corrupt(members[k], Equivocating())
    return world, payment


def skipping(kind: type[World], **more) -> World:
    """u1 and u3 do what they can to skip u2 and keep its fee.

    Where parties pass payments on, u3 gives the key to u1 past u2. Where committees do, f members of each help them.
    """
    world = kind(line(4), **more)
    world.pay(names(4), 10, fee=1)
    upper, lower = world.party("u1"), world.party("u3")
    if not kind.delegates:
        world.corrupt(upper, Fault())
        world.corrupt(lower, Wormhole(upper))
    else:
        world.corrupt(upper, Shortcut(world.members(3)))
        world.corrupt(lower, Shortcut(world.members(0)))
        for cid, other in enumerate((3, 3, 0, 0)):
            for member in world.members(cid)[: world.topology.faulty]:
                world.corrupt(member, Shortcut(world.members(other)))
    world.run()
    return world


def late_network(late: float, rng: np.random.Generator, since: float, factor: float = 40.0):
    """Delays in (0, 1]. From a time on, with the chance `late`, a message takes up to `factor` times as long."""

    def delay(sender, to, message) -> float:
        slow = sender.sim.now >= since and rng.random() < late
        return (1.0 - rng.random()) * (factor if slow else 1.0)

    return delay


def late_world(kind: type[World], late: float, seed: int, attacked: bool) -> World:
    """A payment over three hops in a network in which messages take longer than delta once all hops may be locked.

    late: the chance that a message is late. attacked: of a protocol with deadlines (SyncPCN); the receiver tells its
    payer nothing and claims at the last moment, and the sender signs no opening, so that everything depends on the
    bound.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, int(1e6 * late)]))
    world = kind(line(3), sim=Simulation(late_network(late, rng, since=8.0)), seed=seed)
    world.pay(names(3), 10)
    if attacked:
        last = world.timing.expiries(0.0, 3)[-1]
        silent = Silent(kinds=(Propose,), when=opening)
        world.corrupt(world.party("u3"), silent, Late(Claim, lambda to, m: last, 1.0))
        world.corrupt(world.party("u0"), Deaf(opening))
    world.run()
    return world


def loss_rate(kind: type[World], late: float, seeds: range, attacked: bool) -> tuple[float, float]:
    """The shares of late worlds in which an honest party loses (R1, R2, R3), and in which a lock is left (R5)."""
    lost = left = 0
    for seed in seeds:
        world = late_world(kind, late, seed, attacked)
        found = {violation.requirement for violation in check(world, ("R1", "R2", "R3", "R5"))}
        lost += bool(found & {"R1", "R2", "R3"})
        left += "R5" in found
    return lost / len(seeds), left / len(seeds)


def channel_two_apart(faulty: bool, kind: type[World] = SyncPCN, since: float = 6.0, late: float = 1000.0) -> World:
    """Two hops; from a time on nothing from channel 2 (u_2 and its committee) reaches the rest in time.

    faulty=True: because channel 2 has stopped. faulty=False: it is correct, but its messages to u_0, u_1 and C_1 take
    `late`, while those within it are on time. Until then the rest cannot tell one from the other.
    """

    def outside(sender, to) -> bool:
        return sender.name.startswith(("u2", "C2")) and not to.name.startswith(("u2", "C2"))

    def delay(sender, to, message) -> float:
        return late if not faulty and sender.sim.now >= since and outside(sender, to) else 1.0

    world = kind(line(2), sim=Simulation(delay, trace=True))
    world.pay(names(2), 10)
    if faulty:
        for node in (world.party("u2"), *world.members(1)):
            world.corrupt(node, Silent(after=since))
    world.run()
    return world


def cell(kind: type[World], synchronous: bool, faulty: bool) -> list[str]:
    """What becomes of honest parties in one of four worlds, as the requirements that fail.

    In the asynchronous ones and in the faulty ones, channel 2 is apart from the rest (`channel_two_apart`); from the
    beginning, where committees pass payments on. With a faulty channel, its own two parties may lose, and only parties
    elsewhere count.
    """
    since = 1.0 if kind.delegates else 6.0
    if synchronous and not faulty:
        world = kind(line(2))
        world.pay(names(2), 10)
        world.run()
        return [v.requirement for v in check(world, (*SAFETY, "R7"))]
    worlds = [channel_two_apart(True, kind, since)] if faulty else []
    worlds += [] if synchronous else [channel_two_apart(False, kind, since)]
    return sorted({v.requirement for world in worlds for v in check(world, SAFETY)})


def edges(sender, to, message) -> float:
    """Delays at both ends of (0, 1], by a rule that an adversary could have chosen."""
    return 1e-6 if (sum(to.name.encode()) + sum(sender.name.encode())) % 3 else 1.0


def synchronous_world(seed: int, extra: int = 0, single: bool = False) -> SyncPCN:
    """A random network within the bound, any faulty parties, and at most f faulty members in each committee.

    extra: if not 0, exactly f + extra members are faulty. single: one payment instead of up to six.
    """
    rng = np.random.default_rng(seed)
    n, f, skew = int(rng.integers(1, 5)), int(rng.integers(1, 3)), float(rng.choice([0, 0.3, 1.0]))
    everybody = names(n) + [f"C{c + 1}.{k + 1}" for c in range(n) for k in range(3 * f + 1)]
    delay = [within(1.0, rng), unit, edges][rng.integers(3)]
    world = SyncPCN(
        line(n, f, balance=int(rng.choice([9, 10, 100]))),
        sim=Simulation(delay),
        timing=Timing(1.0, skew),
        skews={name: float(rng.uniform(0, skew)) for name in everybody},
        seed=seed,
    )
    faults = [
        Silent(),
        Equivocating(),
        Careless(),
        Forgetful(),
        Erratic(rng),
        Silent(after=20.0),
        Forging("u0"),
        Replaying(),
    ]
    for cid in range(n):
        for k in rng.permutation(3 * f + 1)[: f + extra if extra else int(rng.integers(0, f + 1))]:
            world.corrupt(world.members(cid)[k], faults[rng.integers(len(faults))])
    for name in names(n):
        if rng.random() < 0.4:
            faults = [
                Silent(after=float(rng.uniform(0, 20 * n))),
                Erratic(rng, 20.0 * n, calm=float(rng.random())),
                Silent(kinds=(Cosign,)),
                Silent(kinds=(Cosign,), when=lambda m: m.seq > 1),
            ]
            world.corrupt(world.party(name), faults[rng.integers(len(faults))])
    for k in range(1 if single else int(rng.integers(1, 7))):
        path = names(n) if rng.random() < 0.7 else names(n)[::-1]
        world.pay(path, int(rng.integers(1, 11)), at=float(rng.uniform(0, 5)) * (k > 0), fee=int(rng.integers(0, 2)))
    return world


def asynchronous_world(seed: int, ordering: str, extra: int = 0, synchronous: bool = False) -> PSyncPCN:
    """A random schedule, and at most f faulty members in each committee; several payments if the committee orders them.

    extra: if not 0, exactly f + extra members are faulty. With ordering="agreed" the network becomes stable in the end,
    which its progress needs. With synchronous=True every message takes at most 1.
    """
    rng = np.random.default_rng(seed)
    n, f = int(rng.integers(1, 5)), int(rng.integers(1, 3))
    if synchronous:
        sim = Simulation(within(1.0, rng))
    elif ordering == "agreed":
        sim = Simulation(stable_after(100.0, 1.0, 50.0, rng))
    else:
        sim = Asynchronous(at_random(rng), patience=int(rng.integers(10, 500)), duplicate=0.1, rng=rng)
    topology = line(n, f, balance=int(rng.choice([9, 10, 15, 100])), other=int(rng.choice([0, 100])))
    commit = ("return", "forward")[rng.integers(2)]
    world = PSyncPCN(topology, sim=sim, seed=seed, ordering=ordering, commit=commit)
    faults = [Silent(), Equivocating(), Forging("C1.1"), Replaying(range(n)), Erratic(rng, 80.0)]
    for cid in range(n):
        for k in rng.permutation(3 * f + 1)[: f + extra if extra else int(rng.integers(0, f + 1))]:
            world.corrupt(world.members(cid)[k], faults[rng.integers(len(faults))])
    capacity = sum(topology.channels[0][2:])
    for _ in range(int(rng.integers(1, 5)) if ordering == "agreed" else 1):
        world.pay(names(n) if rng.random() < 0.6 else names(n)[::-1], min(int(rng.integers(1, 11)), capacity))
    return world
