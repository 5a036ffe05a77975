"""What holds in PSyncPCN after every event, as code; each line names the rule that sees to it (`psyncpcn.world`).

They are the steps of the argument why nobody honest loses coins while at most f members of each committee are faulty:
who pays was locked before, who locked can pay, and no order ends in two ways. `requirements.invariants` has those that
all protocols share.

Serves: tests, and searches for violations, which find a broken step long before it costs anybody coins.
"""

from collections.abc import Iterable

from swarmbook.payments.psyncpcn.entries import FINAL, OrderState
from swarmbook.payments.psyncpcn.member import PSyncPCNMember
from swarmbook.payments.simulation import Node

LOCKED = OrderState.RESERVED, OrderState.PAID


def obligations(world, changed: Node | None = None) -> list[str]:
    """What is wrong now with the honest members of correct committees of a PSyncPCN world; empty if all is right.

    changed: the one node that has changed since the last look, so that the books of others need no other look.
    """
    wrong: list[str] = []
    ends: dict[object, set[str]] = {}
    for cid in range(len(world.topology.channels)):
        if world.correct(cid):
            honest = world.honest(cid)
            for member in honest:
                if changed is None or changed is member:
                    wrong += _books(world, member)
                for pid, entry in member.entries.items():
                    if entry.state in FINAL:
                        ends.setdefault(pid, set()).add(entry.state)
            if changed is None or changed in honest:
                wrong += _coins(world, cid, honest) + _slots(cid, honest)
    wrong += [f"Q1, L1: order {pid} ended as {sorted(states)}" for pid, states in ends.items() if len(states) > 1]
    paid = [pid for pid, states in ends.items() if OrderState.PAID in states]
    return wrong + [line for pid in paid for line in _locked_before(world, pid)]


def _books(world, member: PSyncPCNMember) -> Iterable[str]:
    """B1 and L1: coins set aside are those of orders that are locked, and the ledger holds those that are paid."""
    reserved, ledger = [0, 0], list(world.topology.channels[member.cid][2:])
    for entry in member.entries.values():
        if not world.sound(entry.order):
            yield f"O1: {member} knows of {entry.order}"
        if entry.state == OrderState.RESERVED:
            reserved[entry.side] += entry.amount
        elif entry.state == OrderState.PAID:
            ledger[entry.side] -= entry.amount
            ledger[1 - entry.side] += entry.amount
    if reserved != member.reserved:
        yield f"L1: {member} has set aside {member.reserved}, and locked {reserved}"
    if ledger != member.ledger:
        yield f"B1: {member} has {member.ledger} in its ledger, and {ledger} by its orders"
    if min(member.balances) < 0 or (min(ledger) >= 0 and ledger != member.balances):
        yield f"B1: {member} has balances {member.balances}, and a ledger of {ledger}"


def _coins(world, cid: int, honest: list[PSyncPCNMember]) -> Iterable[str]:
    """L4: what f + 1 honest members have locked, a side has, with what it was paid by then."""
    orders, locked, paid = {}, {}, set()
    for member in honest:
        for pid, entry in member.entries.items():
            if entry.state in LOCKED:
                orders[pid] = entry
                locked[pid] = locked.get(pid, 0) + 1
                if entry.state == OrderState.PAID:
                    paid.add(pid)
    left = list(world.topology.channels[cid][2:])
    for pid, entry in orders.items():
        if locked[pid] > world.topology.faulty:
            left[entry.side] -= entry.amount
            left[1 - entry.side] += entry.amount * (pid in paid)
    return [f"L4: C{cid + 1} has locked more than there is: {left} would be left"] * (min(left) < 0)


def _slots(cid: int, honest: list[PSyncPCNMember]) -> Iterable[str]:
    """A3: honest members decide the same for every slot, and no order twice."""
    decided: dict[int, set] = {}
    for member in honest:
        for slot, agreement in member.agreements.items():
            if agreement.value is not None:
                decided.setdefault(slot, set()).add(agreement.value)
    twice = [
        f"A3: C{cid + 1} has decided {values} in slot {slot}" for slot, values in decided.items() if len(values) > 1
    ]
    pids = [pid for values in decided.values() for pid, _ in values]
    twice += _overruled(cid, honest)
    return twice + [f"A3: C{cid + 1} has decided an order twice"] * (len(set(pids)) < len(pids))


def _overruled(cid: int, honest: list[PSyncPCNMember]) -> Iterable[str]:
    """A3: what f + 1 honest members have committed to in a view may be decided; nobody backs another value later."""
    committed: dict[tuple, int] = {}
    for member in honest:
        for slot, agreement in member.agreements.items():
            for (view, value), names in agreement.commits.items():
                if member.name in names:
                    committed[slot, view, value] = committed.get((slot, view, value), 0) + 1
    for (slot, view, value), count in committed.items():
        if count >= honest[0].few:
            for member in honest:
                agreement = member.agreements.get(slot)
                if agreement is not None and agreement.view > view and agreement.backs not in (None, value):
                    yield f"A3: {member} backs {agreement.backs} in slot {slot}, where {value} may be decided"


def _locked_before(world, pid: object) -> Iterable[str]:
    """L1: when anybody honest has paid an order, f + 1 honest members of each committee before have locked it."""
    known = {}
    for cid in range(len(world.topology.channels)):
        if world.correct(cid):
            known[cid] = [m.entries[pid] for m in world.honest(cid) if pid in m.entries]
    entries = [entry for of in known.values() for entry in of]
    last = max(entry.place for entry in entries if entry.state == OrderState.PAID)
    cids = entries[0].order.cids
    for place, cid in enumerate(cids):
        before = place < last or (world.rules.forward and len(cids) > 1)
        if before and cid in known and sum(e.state in LOCKED for e in known[cid]) <= world.topology.faulty:
            yield f"L1: order {pid} is paid at hop {last + 1}, and C{cid + 1} has not locked it"
