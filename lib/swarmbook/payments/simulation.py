"""Messages and clocks: who gets what when, decided by a seed or by an adversary, and written down.

- A `Simulation` delivers messages by virtual time. Delays are a function of sender, receiver and message, which is how
  networks with a bound, with tables of delays or with an adversary are made (`within`, `unit`). A heap orders the
  times. What is due at one time waits there in the order of sending. Where all delays are equal (`Constant`), a message
  to all members of a committee waits there once.
- An `Asynchronous` simulation has no clock that messages obey: a chooser picks any pending message, or the next timer,
  and may deliver a message again. `patience` bounds for how many steps a message can be passed over, so that every
  schedule is fair.
- A `Node` reacts to messages, and to timers of its own clock, which is off by its skew.
- With `trace=True` every send, delivery, timer and note is an `Event`. `causal_past` is the part of a trace on which an
  event depends.
- A message to oneself takes no time and is not counted. The others are counted when sent.

The file is long because it is one concept: how a node sends, and what then happens, with a clock or without one.

Serves: every figure, table and claim of the notebook that runs a protocol; S10 counts its schedules.
"""

import functools
import gc
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from typing import ClassVar, NamedTuple

import numpy as np

from swarmbook.errors import ConfigError, finite, whole
from swarmbook.payments.encoding import well_formed

VERSION = 2  # of what simulated payments give: to be raised when the same settings would give other numbers


class Event(NamedTuple):
    """One line of a trace.

    what: "send", "deliver", "timer" or "note". peer: the other end of a message, else empty. message: of a timer the
    name of what it calls, of a note its text. number: of a message, the same for its sending and its deliveries.
    """

    time: float
    what: str
    node: str
    peer: str
    message: object
    number: int

    @property
    def kind(self) -> str:
        return type(self.message).__name__ if self.peer else str(self.message)


class Node:
    """A party or a member: `on` maps the class of a message to the method that takes (sender, message)."""

    __slots__ = ("name", "sim", "site", "skew", "faults")
    on: ClassVar[dict[type, Callable]] = {}

    def __init__(self, name: str, sim: "Simulation", skew: float = 0.0, site: int = 0) -> None:
        self.name, self.sim, self.skew, self.site = name, sim, finite("skew", skew), site
        self.faults: tuple = ()

    def __repr__(self) -> str:
        return self.name

    @property
    def clock(self) -> float:
        """The time that this node reads."""
        return self.sim.now + self.skew

    def send(self, to: "Node", message: object) -> None:
        self.sim.send(self, to, message)

    def at(self, time: float, call: Callable, *arguments: object) -> None:
        """Call when this node's clock shows `time`; at once if it already does."""
        self.sim.timer(self, time - self.skew, call, arguments)


def parsed(handler: Callable) -> Callable:
    """A handler of (sender, message) that drops what is not `well_formed`.

    A real receiver finds that out when it reads the bytes of a message. Here nothing is read, and a faulty node can
    send anything under the name of a message. What is of the right types may still be wrong, which is for the rules to
    find out. Handlers of the most frequent messages (`Announce`, `Ack`, `Share`) ask the same, without one more call.
    Where nobody is faulty nobody asks (`Simulation.parses`).
    """

    @functools.wraps(handler)
    def handle(self: Node, sender: Node, message: object) -> None:
        if not self.sim.parses or well_formed(message):
            handler(self, sender, message)

    return handle


class Constant:
    """Every message takes the same time."""

    __slots__ = ("time",)

    def __init__(self, time: float) -> None:
        self.time = time

    def __call__(self, sender: Node, to: Node, message: object) -> float:
        return self.time


unit = Constant(1.0)


def within(delta: float, rng: np.random.Generator) -> Callable[[Node, Node, object], float]:
    """Delays drawn uniformly from (0, delta]."""
    finite("delta", delta, 0, above=True)
    return lambda sender, to, message: delta * (1.0 - rng.random())


def stable_after(time: float, delta: float, wild: float, rng: np.random.Generator):
    """Partial synchrony: before `time` a message takes up to `wild`, but none arrives later than time + delta."""
    finite("time", time, 0), finite("delta", delta, 0, above=True), finite("wild", wild, 0, above=True)

    def delay(sender: Node, to: Node, message: object) -> float:
        now = sender.sim.now
        if now >= time:
            return delta * (1.0 - rng.random())
        return min(wild * (1.0 - rng.random()), time - now + delta * (1.0 - rng.random()))

    return delay


class Simulation:
    """A virtual clock and the messages in flight.

    now: the time. sent: how many messages were sent. events: how many deliveries and timers there were. trace: all
    events, or None if they are not written down. parses: whether a node is faulty, so that receivers look at the
    form of messages (`parsed`).
    """

    def __init__(self, delay: Callable[[Node, Node, object], float] = unit, trace: bool = False) -> None:
        self.delay = delay
        ours = type(self).transmit is Simulation.transmit
        self.parses = False
        self._wait = delay.time if ours and delay.__class__ is Constant else None  # how long all messages take
        self.now = 0.0
        self.sent = self.events = 0
        self.trace: list[Event] | None = [] if trace else None
        self._number = 0
        self._times: list[float] = []  # a heap of the times at which anything is due, each once
        # the messages of each of these, (to, sender, message, number); to: a tuple of nodes if several get it at once,
        # for which the numbers count on
        self._due: dict[float, list[tuple]] = {}
        self._timers: dict[float, list[tuple]] = {}  # and the timers, which come after them; likewise, sender None

    def send(self, sender: Node, to: Node, message: object) -> None:
        """Send as this node would; a faulty one may do something else instead."""
        if sender.faults:
            copies: Iterable[tuple[Node, object]] = [(to, message)]
            for fault in sender.faults:
                copies = [copy for pair in copies for copy in fault.outgoing(sender, *pair)]
            for target, copy in copies:
                self.transmit(sender, target, copy)
        elif self._wait is None or self.trace is not None or sender is to:
            self.transmit(sender, to, message)
        else:  # the same as `transmit`, which most messages of large simulations come to
            self.sent += 1
            self._number = number = self._number + 1
            time = self.now + self._wait
            (self._due.get(time) or self._at(time)).append((to, sender, message, number))

    def send_all(self, sender: Node, nodes: Iterable[Node], message: object) -> None:
        """Send one message to several nodes, of which the sender is none."""
        if sender.faults or self.trace is not None:
            for to in nodes:
                self.send(sender, to, message)
            return
        number, now, delay, due = self._number, self.now, self.delay, self._due
        if self._wait is not None:
            if many := tuple(nodes):
                time = now + self._wait
                (due.get(time) or self._at(time)).append((many, sender, message, number + 1))
                self.sent += len(many)
                self._number = number + len(many)
            return
        for to in nodes:
            number += 1
            time = now + delay(sender, to, message)
            (due.get(time) or self._at(time)).append((to, sender, message, number))
        self.sent += number - self._number
        self._number = number

    def transmit(self, sender: Node, to: Node, message: object, delay: float | None = None) -> None:
        """Put a message on its way. delay: instead of what the network says, which only an adversary gives."""
        self._number = number = self._number + 1
        if sender is to:
            delay = 0.0
        else:
            self.sent += 1
            if delay is None:
                delay = self.delay(sender, to, message)
        if self.trace is not None:
            self.trace.append(Event(self.now, "send", sender.name, to.name, message, number))
        time = self.now + delay
        (self._due.get(time) or self._at(time)).append((to, sender, message, number))

    def timer(self, node: Node, time: float, call: Callable, arguments: tuple = ()) -> None:
        """Call at a time of the simulation; messages that arrive at the very same time come first."""
        self._number += 1
        time = max(time, self.now)
        self._at(time)
        self._timers.setdefault(time, []).append((node, None, (call, arguments), self._number))

    def _at(self, time: float) -> list[tuple]:
        """The messages due at a time. ConfigError for one that is past, or that never comes."""
        if time not in self._due:
            if not self.now <= time < float("inf"):
                raise ConfigError(
                    f"a message or timer of time {self.now} is due at {time}: delays are finite numbers of at least 0"
                )
            self._due[time] = []
            heappush(self._times, time)
        return self._due[time]

    @property
    def next(self) -> float:
        """When the next event is due; infinite if nothing is left."""
        return self._times[0] if self._times else float("inf")

    def note(self, node: Node, text: str) -> None:
        """Write a change of state into the trace."""
        if self.trace is not None:
            self.trace.append(Event(self.now, "note", node.name, "", text, 0))

    def run(self, until: float = float("inf")) -> float:
        """Deliver what is due; returns the time, which is `until` if it is finite. ConfigError if it is no number."""
        horizon = until if until == float("inf") else finite("until", until)
        collecting = gc.isenabled()
        gc.disable()  # whatever a run makes lives on, so that a collector would look at more and more in vain
        try:
            while self._times and self._times[0] <= until:
                self._run_instant()
        finally:
            if collecting:
                gc.enable()
        if horizon < float("inf"):
            self.now = max(self.now, horizon)
        return self.now

    def _run_instant(self) -> None:
        """Deliver what is due next: the messages of one time, then its timers, with the messages that these send."""
        now = self.now = self._times[0]
        messages, timers = self._due[now], self._timers.setdefault(now, [])
        tracing, done, rung = self.trace is not None, 0, 0
        try:
            for entry in messages:  # more may come while these are delivered
                done += 1
                to, sender, message, _ = entry
                if tracing or to.__class__ is tuple:
                    self._hand_over(entry, messages, done)
                elif to.faults:
                    self.deliver(*entry)
                else:
                    to.on[message.__class__](to, sender, message)
            while rung < len(timers):
                rung += 1
                self.deliver(*timers[rung - 1])
                while done < len(messages):
                    done += 1
                    self._hand_over(messages[done - 1], messages, done)
        finally:
            self.events += done + rung
            del messages[:done], timers[:rung]
        heappop(self._times)
        del self._due[now], self._timers[now]

    def _hand_over(self, entry: tuple, messages: list[tuple], place: int) -> None:
        """Deliver one entry, the one before `place`. If a node raises an exception, those behind it get it later."""
        to, sender, message, number = entry
        if to.__class__ is not tuple:
            self.deliver(to, sender, message, number)
            return
        kind, self.events = message.__class__, self.events + len(to) - 1
        try:
            if self.parses or self.trace is not None:
                for later, node in enumerate(to):
                    self.deliver(node, sender, message, number + later)
            else:
                for node in to:
                    node.on[kind](node, sender, message)
        except BaseException:
            heard = to.index(node) + 1
            if heard < len(to):
                messages.insert(place, (to[heard:], sender, message, number + heard))
                self.events -= len(to) - heard
            raise

    def deliver(self, node: Node, sender: Node | None, message: object, number: int) -> None:
        if sender is None:
            if self.trace is not None:
                self.trace.append(Event(self.now, "timer", node.name, "", message[0].__name__, number))
            message[0](*message[1])
            return
        if self.trace is not None:
            self.trace.append(Event(self.now, "deliver", node.name, sender.name, message, number))
        for fault in node.faults:
            if not fault.incoming(node, sender, message):
                return
        node.on[message.__class__](node, sender, message)


class Asynchronous(Simulation):
    """Any pending message may come next.

    choose: given how many candidates there are, the index of the next; the last one is the earliest timer, if there is
    one. patience: no message is passed over more often than this. duplicate: chance that a delivered message stays
    pending for one more delivery, drawn from rng. choices: what was chosen, for `replayed`.
    """

    def __init__(
        self,
        choose: Callable[[int], int],
        patience: int = 1000,
        duplicate: float = 0.0,
        rng: np.random.Generator | None = None,
        trace: bool = False,
    ) -> None:
        super().__init__(unit, trace)
        whole("patience", patience)
        if finite("duplicate", duplicate, 0, 1) == 1:
            raise ConfigError("duplicate=1 would deliver for ever: give a chance below 1")
        if duplicate and rng is None:
            raise ConfigError("duplicate needs rng: a generator from which it is drawn what comes twice")
        self.choose, self.patience, self.duplicate, self.rng = choose, patience, duplicate, rng
        self.choices: list[int] = []
        self._pool: list[list] = []
        self._oldest: deque[list] = deque()
        self._clocks: list[tuple] = []  # timers, by time and number

    def send_all(self, sender: Node, nodes: Iterable[Node], message: object) -> None:
        for to in nodes:
            self.send(sender, to, message)

    def transmit(self, sender: Node, to: Node, message: object, delay: float | None = None) -> None:
        self._number += 1
        self.sent += sender is not to
        if self.trace is not None:
            self.trace.append(Event(self.now, "send", sender.name, to.name, message, self._number))
        self._enter(to, sender, message, self._number)

    def timer(self, node: Node, time: float, call: Callable, arguments: tuple = ()) -> None:
        self._number += 1
        heappush(self._clocks, (max(time, self.now), self._number, node, (call, arguments)))

    @property
    def next(self) -> float:
        """When the next timer is due; messages have no time."""
        return self._clocks[0][0] if self._clocks else float("inf")

    def _enter(self, to: Node, sender: Node, message: object, number: int) -> None:
        entry = [len(self._pool), self.events, to, sender, message, number]
        self._pool.append(entry)
        self._oldest.append(entry)

    def run(self, until: float = float("inf")) -> float:
        """Deliver in the chosen order until nothing is left but timers beyond `until`; returns the time, likewise."""
        horizon = until if until == float("inf") else finite("until", until)
        while self.step(until):
            pass
        if horizon < float("inf"):
            self.now = max(self.now, horizon)
        return self.now

    def step(self, until: float = float("inf")) -> bool:
        """Deliver one message, or let one timer go off; False if nothing is left."""
        due = bool(self._clocks) and self.next <= until
        candidates = len(self._pool) + due
        if not candidates:
            return False
        while self._oldest and self._oldest[0][0] < 0:
            self._oldest.popleft()
        if self._oldest and self.events - self._oldest[0][1] > self.patience:
            index = self._oldest[0][0]
        else:
            index = self.choose(candidates) % candidates
        self.choices.append(index)
        self.events += 1
        if index == len(self._pool):
            time, number, node, message = heappop(self._clocks)
            self.now = max(self.now, time)
            self.deliver(node, None, message, number)
            return True
        entry, last = self._pool[index], self._pool.pop()
        if last is not entry:
            self._pool[index], last[0] = last, index
        entry[0] = -1
        _, _, to, sender, message, number = entry
        if self.duplicate and self.rng.random() < self.duplicate:
            self._enter(to, sender, message, number)
        self.deliver(to, sender, message, number)
        return True


def at_random(rng: np.random.Generator) -> Callable[[int], int]:
    """A chooser that takes any candidate alike."""
    buffer: list[float] = []

    def choose(candidates: int) -> int:
        if not buffer:
            buffer.extend(rng.random(1024).tolist())
        return int(buffer.pop() * candidates)

    return choose


def replayed(choices: Sequence[int]) -> Callable[[int], int]:
    """A chooser that repeats recorded choices, and afterwards takes the first candidate."""
    left = deque(choices)
    return lambda candidates: left.popleft() if left else 0


def causal_past(trace: Sequence[Event], last: int) -> list[Event]:
    """The events on which trace[last] depends: those before at its node, and the sendings of what was delivered."""
    wanted, sends = {trace[last].node: True}, set()
    past = []
    for event in reversed(trace[: last + 1]):
        if wanted.get(event.node) or (event.what == "send" and event.number in sends):
            past.append(event)
            wanted[event.node] = True
            if event.what == "deliver":
                sends.add(event.number)
    return past[::-1]
