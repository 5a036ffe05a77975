"""Runs of a small world: it is built, played under a schedule of deviations, and judged.

Beside the requirements (`check`) a run is judged by the invariants after each event, by what honest parties hold, by
whether anything waits for ever between two of them, and by whether an honest node raised an exception.

Serves: the search for violations.
"""

from collections.abc import Iterable, Iterator

from swarmbook.payments.model_checking.deviations import Alter, Forge, Schedule, Skew, Start, matches
from swarmbook.payments.model_checking.forging import Knowledge, adopt, altered, form
from swarmbook.payments.model_checking.network import Directed, Endless, Played, everyone, message_kinds
from swarmbook.payments.model_checking.settings import Setting
from swarmbook.payments.outcomes import Outcome
from swarmbook.payments.payment_network import World, line
from swarmbook.payments.psyncpcn import PSyncPCN
from swarmbook.payments.psyncpcn.entries import OrderState
from swarmbook.payments.psyncpcn.invariants import obligations
from swarmbook.payments.psyncpcn.world import ENDS
from swarmbook.payments.requirements import check
from swarmbook.payments.simulation import Node
from swarmbook.payments.syncpcn import SyncPCN, SyncPCNParty, Timing
from swarmbook.payments.syncpcn.invariants import broken


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
    channels = range(setting.hops)  # who is faulty does not change any more, and is asked for after every event
    world.honest = [world.honest(cid) for cid in channels].__getitem__
    world.bad_members = [world.bad_members(cid) for cid in channels].__getitem__
    world.honest_parties = [world.honest_parties(cid) for cid in channels].__getitem__
    world.correct = [setting.trusted or world.correct(cid) for cid in channels].__getitem__
    return world


def play(setting: Setting, schedule: Schedule) -> Played:
    """Run a world under a schedule until it rests, and judge it.

    After every event that changed what a node holds the invariants are checked, until one of them is broken.
    """
    faulty = frozenset(setting.faulty)
    last = max((d.time for d in schedule if isinstance(d, Forge)), default=-1.0)  # knowledge is of no use after it
    last = float("inf") if any(isinstance(d, Alter) for d in schedule) else last

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
        if forgery.index % 4 != 3:  # nonsense is nobody's own proposal
            adopt(knowledge, sender, message)
        targets = [nodes[n] for n in nodes if any(matches(p, n) for p in forgery.names) and n != forgery.sender]
        return [(sender, to, message) for to in targets if kind in to.on]

    def alter(rule: Alter, sender: Node, message: object) -> object:
        return altered(knowledge, sender, message, rule.field, rule.which, rule.how)

    def after(node: Node, changed: bool) -> None:
        if node.name in faulty and sim.now <= last:
            knowledge.look(node)
        if changed and not wrong:
            wrong.extend(observer.look(node))

    asynchronous = setting.protocol == "PSyncPCN"
    timed = not asynchronous or ("ordering", "agreed") in setting.rules
    sim = Directed(schedule, faulty, setting.bound, asynchronous, timed, forge, alter, heard, after)
    world = build(setting, sim, schedule)
    nodes = {node.name: node for node in everyone(world)}
    knowledge, observer = Knowledge(world, faulty), Observer(world)
    wrong: list[str] = []
    kinds = message_kinds(world)
    try:
        world.run()
        found = robbed(world) if not wrong else []
        if not wrong and ("R5" in setting.requirements):
            found += idle(world)
        found += [
            f"{violation.requirement} {violation.who}: {violation.what}"
            for violation in check(world, setting.requirements)
        ]
    except Endless as endless:
        found = [f"endless: {endless}"]
    instants = sorted(sim.instants)
    return Played((*wrong, *sim.crashes, *found), sim.log, instants, sim, world)


class Observer:
    """Looks at a world after each event: at the invariants of all protocols (I1 to I7), and at those of its own.

    The names of the latter are in `syncpcn.invariants` and `psyncpcn.invariants`. "R8" here: what a party holds a
    certificate of is what a close would give now. S7: who sends a key held the certificate of the lock before.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.decisions: dict[tuple, str] = {}
        self.numbers: dict[str, int] = {}
        self.began: dict[tuple, int] = {}  # the number of the first state in which a party held a lock

    def look(self, node: Node) -> list[str]:
        """What is wrong now, after a node has changed."""
        world = self.world
        wrong = [f"I4 {what}" for what in world.opposite() if world.correct(what[0])]
        for cid in getattr(node, "ends", None) or [getattr(node, "cid", 0)]:
            if world.correct(cid) and world.honest_parties(cid):
                wrong += world.invariants(cid)
                wrong += [f"R8 {who}: {what}" for who, what in world.stale_closes(cid)]
        if isinstance(world, SyncPCN):
            wrong += broken(world, node)
            if isinstance(node, SyncPCNParty) and node.name not in world.faulty:
                wrong += self._certified(node)
        else:
            wrong += obligations(world, node)
        if hasattr(node, "cid") and node.name not in world.faulty:
            wrong += self._constant(node)
        return wrong

    def _constant(self, member: Node) -> Iterator[str]:
        """I5 and I6: no honest member changes a decision, and its number only grows."""
        number, decided = self.world.progress(member)
        if number < self.numbers.get(member.name, 0):
            yield f"I6: {member} went back"
        self.numbers[member.name] = number
        for about, decision in decided.items():
            if self.decisions.setdefault((member.name, about), decision) != decision:
                yield f"I5: {member} changed its vote"

    def _certified(self, party: SyncPCNParty) -> Iterator[str]:
        """S7, the part that needs a memory: the state with a lock was certified when its key was sent."""
        for cid, end in party.ends.items():
            for lock in end.state.locks:
                self.began.setdefault((party.name, lock.pid), end.state.seq)
            if not self.world.correct(cid):
                continue
            for transit in party.inbound.values():
                of, lock = transit.incoming or (None, None)
                if of == cid and transit.sent is not None and transit.sent == self.world.sim.now:
                    first = self.began.get((party.name, lock.pid))
                    if first is None or end.certified < first:
                        yield f"S7: {party} has sent the key of {lock}, and no quorum holds a state with it"


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


def idle(world: World) -> list[str]:
    """What waits in correct committees although nothing is under way.

    In SyncPCN that is an update of a channel of two honest parties. In PSyncPCN it is an order that some honest members
    have ended, and others have not.
    """
    wrong = []
    if isinstance(world, SyncPCN):
        for cid in range(len(world.topology.channels)):
            names = world.honest_parties(cid)
            for end in (world.party(name).ends[cid] for name in names):
                waits = end.pending is not None or end.held is not None or end.wanted or end.disputes
                if world.correct(cid) and len(names) == 2 and waits:
                    wrong.append(f"idle {end.party}: an update of C{cid + 1} waits for ever")
    else:
        for cid in filter(world.correct, range(len(world.topology.channels))):
            for pid in dict.fromkeys(pid for member in world.honest(cid) for pid in member.entries):
                ends = [m.entries[pid].state if pid in m.entries else OrderState.NEW for m in world.honest(cid)]
                waits = [member for member, end in zip(world.honest(cid), ends, strict=True) if end not in ENDS]
                if 0 < len(waits) < len(ends):
                    wrong.append(f"idle {waits[0]}: an order waits for ever that others have ended as {ends}")
    return wrong
