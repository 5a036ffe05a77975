"""Runs of a small world: it is built, played under a schedule of deviations, and judged.

Beside the requirements (`check`) a run is judged by invariants, by what honest parties hold, and by whether an honest
node raised an exception.

Serves: the search for violations.
"""

from collections.abc import Iterable

from swarmbook.payments.model_checking.deviations import Forge, Schedule, Skew, Start, matches
from swarmbook.payments.model_checking.forging import Knowledge, adopt, form
from swarmbook.payments.model_checking.network import Directed, Endless, Played, everyone, message_kinds
from swarmbook.payments.model_checking.settings import Setting
from swarmbook.payments.outcomes import Outcome
from swarmbook.payments.payment_network import World, line
from swarmbook.payments.psyncpcn import PSyncPCN
from swarmbook.payments.requirements import Watch, check
from swarmbook.payments.simulation import Node
from swarmbook.payments.syncpcn import SyncPCN, Timing


def build(setting: Setting, sim: Directed, schedule: Schedule) -> World:
    """The world, with its payments to come."""
    topology = line(setting.hops, 1, setting.balance, setting.other)
    names = [f"u{i}" for i in range(setting.hops + 1)]
    if setting.protocol == "SyncPCN":
        everybody = names + [f"C{c + 1}.{k + 1}" for c in range(setting.hops) for k in range(topology.size)]
        skews = {
            name: min(max(d.ahead, 0.0), setting.skew) if name not in setting.faulty else d.ahead
            for d in schedule
            if isinstance(d, Skew)
            for name in everybody
            if matches(d.name, name)
        }
        world: World = SyncPCN(topology, sim=sim, timing=Timing(1.0, setting.skew), skews=skews)
    else:
        world = PSyncPCN(topology, sim=sim, **{"ordering": "none", **dict(setting.rules)})
    starts = {d.payment: d.time for d in schedule if isinstance(d, Start)}
    for number, payment in enumerate(setting.payments):
        path = names[payment.first : None if payment.last is None else payment.last + 1]
        path = path[::-1] if payment.backwards else path
        world.pay(path, payment.amount, at=max(0.0, starts.get(number, payment.at)))
    for cid in range(setting.hops):
        world.members(cid)
    world.faulty |= set(setting.faulty)
    if setting.trusted:
        world.correct = lambda cid: True
    return world


def play(setting: Setting, schedule: Schedule, watched: bool = False) -> Played:
    """Run a world under a schedule until it rests, and judge it. watched: check the invariants after every event."""
    faulty = frozenset(setting.faulty)
    wrong: list[str] = []
    watch: list[Watch] = []

    last = max((d.time for d in schedule if isinstance(d, Forge)), default=-1.0)  # knowledge is of no use after it

    def heard(node: Node, message: object) -> None:
        if sim.now <= last:
            knowledge.learn(message)

    def forge(forgery: Forge) -> Iterable[tuple[Node, Node, object]]:
        if forgery.sender not in faulty or forgery.sender not in nodes:
            return []
        sender = nodes[forgery.sender]
        for name in setting.faulty:
            knowledge.look(nodes[name])
        kind = kinds.get(forgery.kind)
        message = form(knowledge, sender, kind, forgery.index) if kind is not None else None
        if message is None:
            return []
        adopt(knowledge, sender, message)
        targets = [nodes[n] for n in nodes if any(matches(p, n) for p in forgery.names) and n != forgery.sender]
        return [(sender, to, message) for to in targets if kind in to.on]

    def after(node: Node) -> None:
        if node.name in faulty and sim.now <= last:
            knowledge.look(node)
        if watch and not wrong:
            wrong.extend(what for what in watch[0].look() if what.startswith(("I5", "I6")))
            wrong.extend(unsound(world))

    asynchronous = setting.protocol == "PSyncPCN"
    timed = not asynchronous or ("ordering", "agreed") in setting.rules
    needs = last >= 0 or watched
    sim = Directed(schedule, faulty, setting.bound, asynchronous, timed, forge, heard, after if needs else None)
    world = build(setting, sim, schedule)
    nodes = {node.name: node for node in everyone(world)}
    knowledge = Knowledge(world, faulty)
    kinds = message_kinds(world)
    if watched:
        watch.append(Watch(world))
    try:
        world.run()
        found = unsound(world) + robbed(world) if not wrong else []
        found += [
            f"{violation.requirement} {violation.who}: {violation.what}"
            for violation in check(world, setting.requirements)
        ]
    except Endless as endless:
        found = [f"endless: {endless}"]
    instants = sorted(sim.instants)
    return Played((*wrong, *sim.crashes, *found), sim.log, instants, sim, world)


def unsound(world: World) -> list[str]:
    """The invariants I1 to I4 and I7 that do not hold now, of correct channels with an honest party."""
    wrong = [f"I4 {what}" for what in world.opposite() if world.correct(what[0])]
    for cid in range(len(world.topology.channels)):
        if world.correct(cid) and world.honest_parties(cid):
            wrong += world.invariants(cid)
    return wrong


def robbed(world: World) -> list[str]:
    """Honest parties, all of whose committees are correct, that hold less than their own payments explain."""
    wrong = []
    for name in sorted({name for channel in world.topology.channels for name in channel[:2]} - world.faulty):
        if not all(world.correct(cid) for cid, channel in enumerate(world.topology.channels) if name in channel[:2]):
            continue
        due = world.initial(name)
        for payment in world.payments:
            outcomes = world.outcomes(payment)
            if payment.path[0] == name and outcomes[0] == Outcome.PAID:
                due -= payment.amounts[0]
            if payment.path[-1] == name and outcomes[-1] == Outcome.PAID:
                due += payment.amounts[-1]
        if world.total(name) < due:
            wrong.append(f"robbed {name}: holds {world.total(name)}, which should be {due}")
    return wrong
