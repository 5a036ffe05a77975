"""What a secure payment has to satisfy, as functions that return violations.

R1 to R11 are the standard requirements of multi-hop payments; the paper's wording is unknown to us. `REQUIREMENTS`
lists them. `check` applies those that can be read off a world at rest, in which no message and no timer is left. R9 and
R10 are games (`swarmbook.payments.privacy`). `invariants` has to hold at any time.

Nothing here knows the protocols: the world says how hops ended and what its committees hold (`World`). Everything is
judged place by place on a path, whoever stands there, so that a path may visit a party or a channel twice. A violation
carries the part of the trace on which its party's loss depends (`causal_past`), if there is a trace.

Serves: the table of requirements and the last table of the notebook; claims S2, S8, S9, S13 and S14.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from swarmbook.payments.outcomes import Outcome
from swarmbook.payments.payment_network import Payment, World
from swarmbook.payments.simulation import Event, causal_past

REQUIREMENTS = {
    "R1": "parties between keep their balance",
    "R2": "the sender pays only for a receipt",
    "R3": "an opened payment is received",
    "R4": "all hops end alike",
    "R5": "every lock ends",
    "R6": "nothing is spent twice",
    "R7": "an honest payment in time succeeds",
    "R8": "a close is fresh",
    "R9": "committees learn no amount",
    "R10": "payments cannot be linked",
    "R11": "nobody between is skipped",
}


@dataclass(frozen=True)
class Violation:
    """A requirement that does not hold, for whom, and the events that led to it."""

    requirement: str
    who: str
    what: str
    trace: tuple[Event, ...] = ()

    def __str__(self) -> str:
        return f"{self.requirement} ({REQUIREMENTS[self.requirement]}): {self.who}: {self.what}"


def check(world: World, only: Iterable[str] = ("R1", "R2", "R3", "R4", "R5", "R6", "R8", "R11")) -> list[Violation]:
    """All violations in a world at rest, of the requirements named."""
    found: list[Violation] = []
    for name in only:
        found += CHECKS[name](world)
    return found


def _violation(world: World, requirement: str, who: str, what: str) -> Violation:
    trace = world.sim.trace or []
    last = next((i for i in range(len(trace) - 1, -1, -1) if who in (trace[i].node, trace[i].node.split(".")[0])), None)
    return Violation(requirement, who, what, () if last is None else tuple(causal_past(trace, last)))


def _hops(world: World, payment: Payment, place: int) -> tuple[str | None, str | None, bool]:
    """How the hops before and after a place of the path ended, and whether the committees of both are correct.

    place: from 0, the sender, who has no hop before it, to n, the receiver, who has none after it.
    """
    outcomes = world.outcomes(payment)
    before = outcomes[place - 1] if place > 0 else None
    after = outcomes[place] if place < len(outcomes) else None
    cids = payment.cids[max(0, place - 1) : place + 1]
    return before, after, all(world.correct(cid) for cid in cids)


def _protected(world: World) -> list[str]:
    """Honest parties all of whose committees are correct."""
    channels = world.topology.channels
    names = sorted({name for channel in channels for name in channel[:2]} - world.faulty)
    return [
        name for name in names if all(world.correct(cid) for cid, channel in enumerate(channels) if name in channel[:2])
    ]


def _short(world: World, requirement: str, parties: Iterable[str], initially: bool = False) -> list[Violation]:
    """Which of these parties hold less than they put in and their paid hops brought and cost.

    initially: or less than they put in, whatever their hops cost.
    """
    moved: Counter[str] = Counter()
    for payment in world.payments:
        for payer, payee, amount, outcome in zip(
            *(payment.path, payment.path[1:], payment.amounts, world.outcomes(payment)), strict=False
        ):
            if outcome == Outcome.PAID:
                moved[payer] -= amount
                moved[payee] += amount
    found = []
    for party in parties:
        total, due = world.total(party), world.initial(party) + moved[party]
        due = max(due, world.initial(party)) if initially else due
        if total < due:
            found.append(_violation(world, requirement, party, f"holds {total} of {due}"))
    return found


def intermediaries(world: World) -> list[Violation]:
    """R1: never paid downstream without being paid upstream; and with the fee if both hops are paid."""
    found = []
    for payment in world.payments:
        for i, party in enumerate(payment.path[1:-1], 1):
            before, after, correct = _hops(world, payment, i)
            if party in world.faulty or not correct:
                continue
            if after == Outcome.PAID and before != Outcome.PAID:
                found.append(_violation(world, "R1", party, f"hop {i + 1} {after}, hop {i} {before}"))
    ends = {end for payment in world.payments for end in (payment.path[0], payment.path[-1])}
    between = [party for party in _protected(world) if world.payments and party not in ends]
    return found + _short(world, "R1", between, initially=True)


def senders(world: World) -> list[Violation]:
    """R2: a sender whose first hop is paid holds a receipt, and loses no more; one without holds what it had."""
    found = []
    for payment in world.payments:
        sender = payment.path[0]
        _, after, correct = _hops(world, payment, 0)
        if sender not in world.faulty and correct and after == Outcome.PAID and not world.receipt(payment):
            found.append(_violation(world, "R2", sender, "paid, and holds no receipt"))
    starts = {payment.path[0] for payment in world.payments}
    return found + _short(world, "R2", [party for party in _protected(world) if party in starts])


def receivers(world: World) -> list[Violation]:
    """R3: if the receiver gave out a receipt, its hop is paid; and it holds what its paid hops brought."""
    found = []
    for payment in world.payments:
        receiver = payment.path[-1]
        before, _, correct = _hops(world, payment, len(payment.path) - 1)
        given = "receipt exists" in payment.times or world.receipt(payment)
        if receiver not in world.faulty and correct and given and before != Outcome.PAID:
            found.append(_violation(world, "R3", receiver, f"gave a receipt, and its hop is {before}"))
    starts, ends = ({payment.path[place] for payment in world.payments} for place in (0, -1))
    return found + _short(world, "R3", [party for party in _protected(world) if party in ends - starts])


def atomicity(world: World) -> list[Violation]:
    """R4: with correct channels between honest parties, never one hop paid and another refunded."""
    found = []
    for payment in world.payments:
        if any(party in world.faulty for party in payment.path) or not all(map(world.correct, payment.cids)):
            continue
        outcomes = set(world.outcomes(payment))
        if Outcome.PAID in outcomes and outcomes != {Outcome.PAID}:
            found.append(_violation(world, "R4", payment.path[0], f"hops ended {world.outcomes(payment)}"))
    return found


def termination(world: World) -> list[Violation]:
    """R5: no lock in a correct channel with an honest party is left. An update that waits has none."""
    found = []
    for payment in world.payments:
        if world.direct(payment):
            continue
        for i, (cid, outcome) in enumerate(zip(payment.cids, world.outcomes(payment), strict=True), 1):
            honest = [party for party in payment.path[i - 1 : i + 1] if party not in world.faulty]
            if outcome == Outcome.LOCKED and honest and world.correct(cid):
                found.append(_violation(world, "R5", honest[0], f"hop {i} is locked for ever"))
    return found


def conservation(world: World) -> list[Violation]:
    """R6: what parties hold is what they put in, nobody less than nothing; no two opposite certificates."""
    found = []
    for cid, *what in world.opposite():
        if world.correct(cid):
            found.append(_violation(world, "R6", f"C{cid + 1}", f"opposite certificates {what[-2:]}"))
    for cid, channel in enumerate(world.topology.channels):
        if world.correct(cid):
            balances = world.balances(cid)
            if min(balances) < 0 or sum(balances) != sum(channel[2:]):
                found.append(_violation(world, "R6", f"C{cid + 1}", f"balances {balances} of {sum(channel[2:])}"))
    return found


def success(world: World) -> list[Violation]:
    """R7: every hop of every payment is paid. To be asked of honest runs in time, with enough balance."""
    return [
        _violation(world, "R7", payment.path[0], f"hops ended {world.outcomes(payment)}")
        for payment in world.payments
        if set(world.outcomes(payment)) != {Outcome.PAID}
    ]


def freshness(world: World) -> list[Violation]:
    """R8: whichever quorum of a correct committee answers a close, faulty ones with what is oldest, it is fresh."""
    return [
        _violation(world, "R8", who, what)
        for cid in range(len(world.topology.channels))
        if world.correct(cid)
        for who, what in world.stale_closes(cid)
    ]


def wormholes(world: World) -> list[Violation]:
    """R11: no honest party between is left without its two hops while others on both its sides are paid."""
    found = []
    for payment in world.payments:
        outcomes = world.outcomes(payment)
        for i, party in enumerate(payment.path[1:-1], 1):
            before, after, correct = _hops(world, payment, i)
            skipped = (
                before != Outcome.PAID
                and after != Outcome.PAID
                and Outcome.PAID in outcomes[: i - 1]
                and Outcome.PAID in outcomes[i + 1 :]
            )
            if party not in world.faulty and correct and skipped:
                found.append(_violation(world, "R11", party, f"hops ended {outcomes}"))
    return found


def invariants(world: World) -> list[str]:
    """The invariants that do not hold now, of what honest parties and members of correct committees have.

    I1 conservation of coins, I2 no negative balance, I3 one certified state a number, I4 no opposite certificates, I7
    nothing accepted without its signatures. I5 and I6 compare two moments (`Watch`).
    """
    wrong = [f"I4: {what}" for what in world.opposite() if world.correct(what[0])]
    for cid in range(len(world.topology.channels)):
        if world.correct(cid):
            wrong += world.invariants(cid)
    return wrong


class Watch:
    """Looks at a world again and again: no honest member changes a decision (I5), and its number only grows (I6)."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.decisions: dict[tuple, str] = {}
        self.numbers: dict[str, int] = {}

    def look(self) -> list[str]:
        """What is wrong now, or has changed since the last look and may not."""
        wrong = invariants(self.world)
        for cid in range(len(self.world.topology.channels)):
            for member in self.world.honest(cid):
                number, decided = self.world.progress(member)
                wrong += [f"I6: {member} went back"] * (number < self.numbers.get(member.name, 0))
                self.numbers[member.name] = number
                for about, decision in decided.items():
                    if self.decisions.setdefault((member.name, about), decision) != decision:
                        wrong.append(f"I5: {member} changed its vote")
        return wrong


CHECKS = {
    "R1": intermediaries,
    "R2": senders,
    "R3": receivers,
    "R4": atomicity,
    "R5": termination,
    "R6": conservation,
    "R7": success,
    "R8": freshness,
    "R11": wormholes,
}
