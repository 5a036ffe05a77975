"""A network that keeps to a schedule of deviations, lets the adversary act, and notes what was reached.

Every run of the same world with the same schedule is the same. The network writes down what messages there were, which
times mattered, and hashes of the states it went through:

- the *state* of a world is what all nodes hold as far as `local_state` tells, and which messages are in flight; hashes
  of these are counted;
- a *history* is what each node received, and its timers, in the node's own order, with times where times matter. Two
  runs with the same histories differ at most in the order of events that do not concern each other.

Serves: the search for violations.
"""

from collections.abc import Callable, Iterable, Mapping
from heapq import heappop, heappush
from typing import NamedTuple

from swarmbook.payments.encoding import well_formed
from swarmbook.payments.model_checking.deviations import (
    EVERY,
    Alter,
    Arrive,
    Delay,
    Forge,
    Ignore,
    Only,
    Pace,
    Rush,
    Schedule,
    Sleep,
    Twice,
    Withhold,
    concerns,
)
from swarmbook.payments.payment_network import World
from swarmbook.payments.signatures import Tally
from swarmbook.payments.simulation import Node, Simulation

TINY = 2.0**-22  # a delay that is almost none: shorter than a tick of the deadlines
MOST_EVENTS = 20_000  # of one run, beyond which it is given up


class Endless(Exception):
    """A run did not come to rest within `MOST_EVENTS`."""


class Directed(Simulation):
    """A simulation whose messages take the time that a schedule says.

    faulty: the names of the adversary's nodes, to which bounds do not apply. bound: the longest delay between others.
    What is sent to a faulty node the adversary knows at once, since a delay may be as good as none (it is rushing).
    repeats: whether the network may deliver twice. timed: whether times belong to histories. forge: makes the message
    of a `Forge`, or None. alter: what an `Alter` makes of a message. heard: is told of everything that is sent by or to
    a faulty node. after: is called after every event with its node, and whether that now holds something else.

    crashes: honest nodes that raised an exception. forged: what the adversary made, as (time, to, message). log: every
    message sent, as (time, kind, sender, to, nth). instants: when timers of honest nodes were due. coverage: hashes of
    local states. states: hashes of states of the world.
    """

    def __init__(
        self,
        schedule: Schedule,
        faulty: frozenset[str],
        bound: float,
        repeats: bool,
        timed: bool,
        forge: Callable[[Forge], list[tuple[Node, Node, object]]],
        alter: Callable[[Alter, Node, object], object],
        heard: Callable[[Node, object], None],
        after: Callable[[Node, bool], None],
    ) -> None:
        super().__init__()
        self.faulty, self.bound, self.repeats, self.timed = faulty, bound, repeats, timed
        self.forge, self.alter, self.heard, self.after = forge, alter, heard, after
        self.pace = next((d.delay for d in schedule if isinstance(d, Pace)), 1.0)
        self.rush = next((d.delay for d in schedule if isinstance(d, Rush)), self.pace)
        self.schedule = [
            d for d in schedule if isinstance(d, Delay | Arrive | Twice | Withhold | Only | Ignore | Alter)
        ]
        self.sleeps = [d for d in schedule if isinstance(d, Sleep) and d.name in faulty and d.until > d.since]
        self.log: list[tuple[float, str, str, str, int]] = []
        self.instants: set[float] = set()
        self.coverage: set[int] = set()
        self.states: set[int] = set()
        self.histories: dict[str, int] = {}
        self.crashes: list[str] = []
        self.forged: list[tuple[float, str, object]] = []
        self._rules: dict[tuple[str, str, str], list] = {}
        self._sent: dict[tuple[str, str, str], int] = {}
        self._queue: list[tuple] = []
        self._local: dict[str, int] = {}
        self._state = 0
        for forgery in schedule:
            if isinstance(forgery, Forge):
                self._number += 1
                heappush(self._queue, (forgery.time, 2, self._number, None, None, forgery, 0))

    @property
    def next(self) -> float:
        return self._queue[0][0] if self._queue else float("inf")

    def send_all(self, sender, nodes, message):
        for to in nodes:
            self.transmit(sender, to, message)

    def transmit(self, sender, to, message, delay=None):
        if sender is to:
            self._push(self.now, 0, to, sender, message, 0)
            return
        key = type(message).__name__, sender.name, to.name
        nth = self._sent.get(key, 0)
        self._sent[key] = nth + 1
        self.sent += 1
        self.log.append((self.now, *key, nth))
        bad = sender.name in self.faulty
        free = bad or to.name in self.faulty
        if free:
            self.heard(to, message)
        arrival, again = self.now + (self.rush if free else self.pace), None
        for rule in self._about(key):
            if isinstance(rule, Only):
                if bad and to.name not in rule.names:
                    return
            elif rule.nth not in (EVERY, nth):
                continue
            elif isinstance(rule, Withhold):
                if bad:
                    return
            elif isinstance(rule, Alter):
                if bad:
                    message = self.alter(rule, sender, message)
                    if not well_formed(message):
                        return
            elif isinstance(rule, Delay):
                arrival = self.now + rule.delay
            elif isinstance(rule, Arrive):
                arrival = rule.time
            elif isinstance(rule, Twice):
                again = self.now + rule.delay
            elif to.name in self.faulty:
                return
        if not free:
            arrival = min(arrival, self.now + self.bound)
        self._push(max(arrival, self.now + TINY), 0, to, sender, message, nth)
        if again is not None and (self.repeats or bad):
            self._push(max(again, self.now + TINY), 0, to, sender, message, nth)

    def deliver_forged(self, sender: Node, to: Node, message: object) -> None:
        """A message that the adversary made arrives at once: it was sent when that suited. Nobody decodes nonsense."""
        self.forged.append((self.now, to.name, message))
        if well_formed(message):
            self._push(self.now, 0, to, sender, message, -1)

    def timer(self, node, time, call, arguments=()):
        time = max(time, self.now)
        if node.name not in self.faulty:
            self.instants.add(time)
        self._push(time, 1, node, None, (call, arguments), 0)

    def run(self, until=float("inf")):
        queue = self._queue
        while queue and queue[0][0] <= until:
            entry = heappop(queue)
            self.now, _, _, node, sender, message, nth = entry
            if self.sleeps and node is not None and (wakes := self._asleep(node.name)):
                if wakes < float("inf"):
                    heappush(queue, (wakes, *entry[1:]))
                continue
            self.events += 1
            if self.events > MOST_EVENTS:
                raise Endless(f"a run of more than {MOST_EVENTS} events: it does not come to rest")
            if node is None:
                for origin, to, forged in self.forge(message):
                    self.deliver_forged(origin, to, forged)
                continue
            what, sent = message[0].__name__ if sender is None else message, self._number
            if sender is not None:
                self._state ^= hash((type(message).__name__, sender.name, node.name, nth))
            try:
                if sender is None:
                    message[0](*message[1])
                else:
                    node.on[message.__class__](node, sender, message)
            except Exception as error:  # whatever it is: nobody may make an honest node fail
                if node.name not in self.faulty:
                    self.crashes.append(f"crash {node}: {type(error).__name__} {error} at {what!r:.80}")
            changed = self._note(node, sender, what)
            if not changed and sender is not None and sent == self._number:  # refused, or of no use
                self.coverage.add(hash((type(message).__name__, nth < 0, self._local[node.name])))
            self.after(node, changed)
        return self.now

    def _asleep(self, name: str) -> float:
        """Until when a node does not act, or 0 if it does."""
        return max((s.until for s in self.sleeps if s.name == name and s.since <= self.now < s.until), default=0.0)

    def _push(self, time, rank, node, sender, message, nth) -> None:
        self._number += 1
        if sender is not None:
            self._state ^= hash((type(message).__name__, sender.name, node.name, nth))
        heappush(self._queue, (time, rank, self._number, node, sender, message, nth))

    def _about(self, key: tuple[str, str, str]) -> list:
        rules = self._rules.get(key)
        if rules is None:
            rules = self._rules[key] = [rule for rule in self.schedule if concerns(rule, *key)]
        return rules

    def _note(self, node: Node, sender: Node | None, what: object) -> bool:
        name = node.name
        when = self.now if self.timed else 0.0
        origin = "" if sender is None else sender.name
        self.histories[name] = hash((self.histories.get(name, 0), origin, what, when))
        local = hash((name, local_state(node)))
        before = self._local.get(name, 0)
        if local != before:
            self._local[name] = local
            self._state ^= before ^ local
            self.coverage.add(local)
        self.states.add(self._state)
        return local != before

    @property
    def history(self) -> int:
        """A hash of all histories."""
        return hash(frozenset(self.histories.items()))


def local_state(node: Node) -> tuple:
    """What a node holds, as far as the protocols' decisions depend on it; names and numbers used once are left out."""
    ends = getattr(node, "ends", None)
    if ends is not None:
        return (
            passing(node),
            counted(node.votes),
            *(
                (
                    *(cid, end.state.seq, end.certified, end.turn, end.held is not None, len(end.wanted)),
                    *(len(end.state.locks), tuple(end.disputes), tuple(outcome for _, outcome in end.past.values())),
                    tuple(resolved.decision for resolved in end.resolved.values()),
                    end.pending[3].what if end.pending is not None else None,
                )
                for cid, end in ends.items()
            ),
        )
    entries = getattr(node, "entries", None)
    if entries is not None:
        agreements = tuple(
            (a.view, a.value, a.backs, a.prepared and a.prepared[:2], len(a.prepares), len(a.commits), len(a.licences))
            for a in node.agreements.values()
        )
        states = tuple(entry.state for entry in entries.values())
        heard = len([names for names in node.shares.values() if names is None])
        return states, tuple(node.balances), tuple(node.reserved), heard, node.slot, agreements, tuple(node.next)
    if hasattr(node, "log"):
        return node.seq, tuple(node.votes.values()), len(node.early)
    return tuple(node.certificates), counted(node.tallies)


def counted(tallies: Mapping[tuple, Tally]) -> tuple:
    """How many have said what a party counts, which is the first or the last part of what each tally is about."""
    return tuple((about[0], about[-1], *map(len, tally.votes.values())) for about, tally in tallies.items())


def passing(party: Node) -> tuple:
    """What a party of SyncPCN has done about each payment, and by how much the locks differ between which it stands."""
    transits = {id(transit): transit for of in (party.inbound, party.outbound) for transit in of.values()}
    found = []
    for transit in transits.values():
        before, after = transit.incoming, transit.outgoing
        apart = None
        if before and after:
            apart = before[1].amount - after[1].amount, round(before[1].expiry - after[1].expiry, 3)
        found.append((transit.sent is not None, transit.done, transit.late, transit.key is not None, apart))
    return tuple(found)


class Played(NamedTuple):
    """What came of a run.

    violations: as text. log: the messages (`Directed.log`). instants: times that matter. sim: with its counts and
    hashes.
    """

    violations: tuple[str, ...]
    log: list
    instants: list[float]
    sim: Directed
    world: World

    @property
    def kinds(self) -> frozenset[str]:
        """Which requirements and invariants were broken."""
        return kinds(self.violations)


def kinds(violations: Iterable[str]) -> frozenset[str]:
    """The requirements and invariants that violations name."""
    return frozenset(text.split(" ")[0].rstrip(":,") for text in violations)


def everyone(world: World) -> list[Node]:
    """All parties and members of a world."""
    parties = sorted({name for channel in world.topology.channels for name in channel[:2]})
    members = [member for cid in range(len(world.topology.channels)) for member in world.members(cid)]
    return [world.party(name) for name in parties] + members


def message_kinds(world: World) -> dict[str, type]:
    """Every class of message that some node of a world reacts to, by name."""
    return {kind.__name__: kind for node in everyone(world) for kind in node.on}
