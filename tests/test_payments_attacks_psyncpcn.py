"""Attacks on PSyncPCN that earlier versions lost money or payments to, each in its smallest form, and a hunt for more.

Unless a test says otherwise, at most f members of a committee are faulty, and every message arrives in the end. After
every event the invariants of `requirements` and the protocol's own (`psyncpcn.invariants`) have to hold.
"""

from collections.abc import Iterable
from itertools import product

import numpy as np
import pytest

from swarmbook.payments.adversary import Fault, Selective
from swarmbook.payments.attacks import SAFETY, names
from swarmbook.payments.outcomes import Decision, Outcome
from swarmbook.payments.payment_network import Topology, line
from swarmbook.payments.pbft import Commit, NewView, Prepare, PrePrepare, ViewChange
from swarmbook.payments.psyncpcn import AskNumber, Number, Order, PSyncPCN, PSyncPCNMember, Share
from swarmbook.payments.psyncpcn.invariants import obligations
from swarmbook.payments.requirements import Watch, check
from swarmbook.payments.signatures import Keys
from swarmbook.payments.simulation import Asynchronous, Simulation, at_random, unit, within

COMMITS = ("return", "forward")


def watched(world: PSyncPCN, only: Iterable[str] = SAFETY) -> list[str]:
    """Run a world event by event, and return what is wrong with it on the way and in the end."""
    watch, wrong = Watch(world), set()

    def look() -> None:
        wrong.update(watch.look() + obligations(world))

    if isinstance(world.sim, Asynchronous):
        while world.sim.step():
            look()
    while world.sim.next < float("inf"):
        world.run(world.sim.next)
        look()
    return sorted(wrong) + [str(violation) for violation in check(world, only)]


def unfinished(world: PSyncPCN) -> list[str]:
    """What is left to do in a world at rest: payments without an end or a receipt, members that have not caught up."""
    left = []
    for payment in world.payments:
        outcomes, (pid,) = world.outcomes(payment), payment.pids
        if payment.path[0] not in world.faulty and outcomes[0] not in (Outcome.PAID, Outcome.REFUNDED):
            left.append(f"payment {payment.number} has not ended: {outcomes}")
        if payment.path[0] not in world.faulty and outcomes[0] == Outcome.PAID and not world.receipt(payment):
            left.append(f"payment {payment.number} is paid, without a receipt")
        for cid in payment.cids:
            states = {m.entries[pid].state for m in world.honest(cid) if pid in m.entries}
            everybody = all(pid in m.entries for m in world.honest(cid))
            if "reserved" in states or "paid" in states and (len(states) > 1 or not everybody):
                left.append(f"C{cid + 1} has payment {payment.number} as {states}")
    for cid in range(len(world.topology.channels)):
        left += [f"{m} has not caught up" for m in world.honest(cid) if any(m.reserved) or m.ledger != m.balances]
    return left


def slow(*links: tuple[str, str, type, float]):
    """Every message takes 1, but those of a kind between nodes whose names begin so take longer."""

    def delay(sender, to, message) -> float:
        for one, other, kind, after in links:
            if sender.name.startswith(one) and to.name.startswith(other) and isinstance(message, kind):
                return after
        return 1.0

    return delay


# committees that agree


@pytest.mark.parametrize("hops", [1, 2])
def test_a_member_that_the_leader_leaves_out_learns_what_was_decided(hops):
    """The leader talks to two others alone: they decide with it, and the fourth has to be told."""
    world = PSyncPCN(line(hops), ordering="agreed")
    committee = world.members(hops - 1)
    world.corrupt(committee[0], Selective([committee[1].name, committee[3].name]))
    payment = world.pay(names(hops), 10)
    assert not watched(world) and not unfinished(world)
    assert set(world.outcomes(payment)) == {Outcome.PAID} and world.receipt(payment)
    assert [world.total(party) for party in names(hops)] == [90, *[200] * (hops - 1), 110]


def test_no_balance_is_negative_in_passing():
    """u1 passes on what it was just paid, and one member hears of the second payment first."""
    sim = Simulation(slow(("C2", "C1.3", Share, 100.0)))
    world = PSyncPCN(Topology((("u0", "u1", 10, 0), ("u1", "u2", 10, 0))), sim=sim, ordering="agreed")
    payments = [world.pay(["u0", "u1", "u2"], 10), world.pay(["u1", "u0"], 10, at=40.0)]
    assert not watched(world) and not unfinished(world)
    assert [set(world.outcomes(payment)) for payment in payments] == [{Outcome.PAID}] * 2


class Generous(Fault):
    """A member that proposes and backs LOCK for everything; `groups` are those that it tells of one order each."""

    def __init__(self, groups: list[set[str]]):
        self.groups, self.pids = groups, []

    def outgoing(self, node, to, message):
        if not isinstance(message, PrePrepare | Prepare | Commit):
            return [(to, message)]
        pid, _ = message.value
        if pid not in self.pids:
            self.pids.append(pid)
        if to.name not in self.groups[self.pids.index(pid) % len(self.groups)]:
            return []
        value = pid, Decision.LOCK
        statement = (type(message).__name__, message.cid, message.slot, message.view, value)
        return [(to, message._replace(value=value, signature=node.keys.sign(node.name, statement)))]


@pytest.mark.parametrize("faulty", range(4))
def test_no_three_payments_share_the_coins_of_two(faulty):
    """Each honest member could reserve two of them, and a faulty one backs all: any two, but not all three, fit."""
    honest = [f"C1.{k + 1}" for k in range(4) if k != faulty]
    world = PSyncPCN(line(1, balance=10, other=0), ordering="agreed")
    groups = [{honest[k], honest[(k + 1) % 3]} for k in range(3)]
    world.corrupt(world.members(0)[faulty], Generous(groups))
    payments = [world.pay(["u0", "u1"], 5) for _ in range(3)]
    assert not watched(world) and not unfinished(world)
    assert sum(world.outcomes(payment) == [Outcome.PAID] for payment in payments) <= 2


def test_what_a_quorum_prepared_cannot_be_hidden_behind_a_request_that_nobody_signed():
    """The leader of the second view adds a request of its own making to an honest quorum of them."""
    world = PSyncPCN(line(1), ordering="agreed", keys=Keys("cached"))
    _, order = world.order(["u0", "u1"], 10)
    pid, sign = order.pid(world.keys), world.keys.sign
    lock, abort = (pid, Decision.LOCK), (pid, Decision.ABORT)

    def request(name: str, prepared: tuple | None) -> tuple[str, ViewChange]:
        return name, ViewChange(0, 0, 1, prepared, sign(name, ("ViewChange", 0, 0, 1, prepared)))

    kinds = {"C1.1": "PrePrepare", "C1.2": "Prepare", "C1.4": "Prepare"}
    votes = tuple((name, sign(name, (kind, 0, 0, 0, lock))) for name, kind in kinds.items())
    honest = (request("C1.1", (0, lock, votes)), request("C1.2", None), request("C1.4", None))
    for forged in (("C9.9", honest[1][1]._replace(prepared=(7, abort, ()))), request("C1.2", (7, abort, votes))):
        for value, backed in ((abort, False), (lock, True)):
            member = PSyncPCNMember("C1.3", world, world.rules, 0, (world.party("u0"), world.party("u1")), [100, 100])
            leader = world.members(0)[1]
            member.ordered(world.party("u0"), order)
            requests = (*(honest if forged[0] == "C9.9" else (honest[0], honest[2])), forged)
            new = NewView(0, 0, 1, value, requests, sign("C1.2", ("NewView", 0, 0, 1, value)))
            member.agreeing(leader, new)
            member.agreeing(leader, PrePrepare(0, 0, 1, value, sign("C1.2", ("PrePrepare", 0, 0, 1, value))))
            assert (member.agreements[0].backs == value) == (backed and forged[0] == "C9.9"), (forged[0], value)


def test_an_order_that_a_faulty_sender_gives_to_one_member_reaches_the_others():
    world = PSyncPCN(line(2), ordering="agreed")
    world.corrupt(world.party("u0"), Selective(["C1.3"]))
    payment = world.pay(names(2), 10)
    assert not watched(world) and not unfinished(world)
    assert set(world.outcomes(payment)) == {Outcome.PAID}


# members that learn the outcome early, or never


@pytest.mark.parametrize("ordering", ["none", "payer"])
@pytest.mark.parametrize("commit", COMMITS)
def test_a_member_that_is_told_of_the_payment_before_it_locked_still_sends_its_share(ordering, commit):
    """C2.3 lacks the share of C1.3, to whom the order comes last, and C1.1 and C1.2 lack that of C2.3."""
    sim = Simulation(slow(("u0", "C1.3", Order, 100.0)))
    world = PSyncPCN(line(2), sim=sim, ordering=ordering, commit=commit)
    world.corrupt(world.members(0)[3], Selective(["u0", "C2.1", "C2.2", "C2.4"]))
    world.corrupt(world.members(1)[3], Selective(["u1", "C1.3"]))
    payment = world.pay(names(2), 10)
    assert not watched(world) and not unfinished(world)
    assert set(world.outcomes(payment)) == {Outcome.PAID} and world.receipt(payment)
    assert world.total("u1") == 200


@pytest.mark.parametrize("ordering", ["none", "payer"])
@pytest.mark.parametrize("commit", COMMITS)
def test_a_member_that_is_told_of_the_refusal_before_it_locked_still_sends_its_share(ordering, commit):
    """The same where the second channel has too few coins: the reservations of C1.1 and C1.2 have to end."""
    sim = Simulation(slow(("u0", "C1.3", Order, 100.0)))
    topology = Topology((("u0", "u1", 100, 100), ("u1", "u2", 5, 100)))
    world = PSyncPCN(topology, sim=sim, ordering=ordering, commit=commit)
    world.corrupt(world.members(0)[3], Selective(["u0", "C2.1", "C2.2", "C2.4"]))
    world.corrupt(world.members(1)[3], Selective(["u1", "C1.3"]))
    payment = world.pay(names(2), 10)
    assert not watched(world) and not unfinished(world)
    assert set(world.outcomes(payment)) == {Outcome.REFUNDED}


def test_f_plus_one_members_behind_are_enough_to_lock():
    """A faulty sender leaves C1.3 out, and so C2.3 and C3.3: u3 is paid, and u2 waits for the share of C2.3."""
    world = PSyncPCN(line(3), ordering="none")
    for cid, told in enumerate((["C2.1", "C2.2", "C2.4"], ["C3.1", "C3.2", "C3.4"], ["u3"])):
        world.corrupt(world.members(cid)[3], Selective(told))
    world.corrupt(world.party("u0"), Selective(["C1.1", "C1.2", "C1.4"]))
    payment = world.pay(names(3), 10)
    assert not watched(world) and not unfinished(world)
    assert set(world.outcomes(payment)) == {Outcome.PAID}
    assert [world.total(party) for party in names(3)] == [90, 200, 200, 110]


# orders that are not what they seem


@pytest.mark.parametrize("relay", ["committee", "party"])
@pytest.mark.parametrize("mode", ["mock", "cached"])
@pytest.mark.parametrize("spoilt", ["unsigned", "missing"])
def test_a_share_with_a_spoilt_order_completes_no_quorum(relay, mode, spoilt):
    """Whoever acted on the third share took the order from it, found it wrong, and never looked at another share."""

    class Spoiling(Fault):
        def outgoing(self, node, to, message):
            if not isinstance(message, Share) or message.order is None:
                return [(to, message)]
            order = message.order._replace(signature=None) if spoilt == "unsigned" else None
            return [(to, message._replace(order=order))]

    sim = Simulation(slow(("C1.3", "", Share, 5.0)))
    world = PSyncPCN(line(2), sim=sim, keys=Keys(mode), relay=relay, ordering="none")
    world.corrupt(world.members(0)[3], Spoiling())
    payment = world.pay(names(2), 10)
    assert not watched(world) and not unfinished(world)
    assert set(world.outcomes(payment)) == {Outcome.PAID}


@pytest.mark.parametrize(
    "change",
    [
        {"amounts": (1, 50)},
        {"amounts": (-50, -50)},
        {"amounts": (10, 0)},
        {"payers": (1, 0)},
        {"payers": (0, 1)},
        {"cids": (1, 0)},
        {"cids": (0, 0)},
        {"cids": (0, 7)},
        {"amounts": (10,)},
        {"receiver": "u1"},
        {"cids": (1,), "amounts": (10,), "payers": (0,)},
    ],
    ids=str,
)
@pytest.mark.parametrize("ordering", ["none", "payer", "agreed"])
def test_no_order_moves_coins_that_are_not_the_senders(change, ordering):
    """A faulty sender signs an order that takes more from somebody than it gives."""
    world = PSyncPCN(line(2), ordering=ordering)
    payment, order = world.order(names(2), 10)
    world.corrupt(world.party("u0"), Fault())
    order = order._replace(**change)
    order = order._replace(signature=world.keys.sign("u0", order.statement()))
    world.register(order.pid(world.keys), payment)
    for cid in range(2):
        for member in world.members(cid):
            world.party("u0").send(member, order)
    assert not watched(world)
    assert [world.total(party) for party in names(2)] == [100, 200, 100]
    assert not any(m.entries for cid in range(2) for m in world.members(cid))


# what is not promised, and shows that the promises are tight


@pytest.mark.parametrize(("ordering", "heeded"), [("payer", True), ("agreed", False), ("none", False)])
def test_nobody_but_the_payer_numbers_an_order_and_only_where_payers_number(ordering, heeded):
    """The payee signs a number of its own side that names an order of the other side; the payer's comes late."""
    world = PSyncPCN(line(1), ordering=ordering, sim=Simulation(slow(("C1.", "u0", AskNumber, 100.0))))
    payment = world.pay(names(1), 10)
    world.faulty.add("u1")
    world.run(1.5)
    pid, before = payment.pids[0], [m.entries[payment.pids[0]].state for m in world.members(0)]
    for side, name in enumerate(names(1)):
        statement = ("number", 0, side, pid, Decision.LOCK, 0)
        for member in world.members(0):
            if side == 1 or not heeded:
                forged = Number(0, side, pid, Decision.LOCK, 0, world.keys.sign(name, statement))
                member.numbered(world.party(name), forged)
    assert [m.entries[pid].state for m in world.members(0)] == before
    assert watched(world) == [] and world.outcomes(payment) == [Outcome.PAID]


@pytest.mark.parametrize(
    ("rules", "certified"),
    [({"ordering": "none"}, 4), *(({"ordering": how}, 3) for how in ("payer", "agreed")), ({}, 3)],
)
def test_only_an_order_among_payments_keeps_members_from_locking_too_much_together(rules, certified):
    """Four honest payments for the coins of three; each member hears of another one last and refuses it.

    Without an ordering a quorum locks each. Accounts from which several may spend need agreement (Guerraoui et al.,
    2019), so that ordering="none" is for coins that suffice for all that is asked of them, and not the default.
    """
    late = {}

    def delay(sender, to, message) -> float:
        if isinstance(message, Order):
            number = late.setdefault(message.nonce, len(late))
            return 5.0 if to.name == f"C1.{number + 1}" else 1.0
        return 1.0

    world = PSyncPCN(line(1, balance=30, other=0), sim=Simulation(delay), **rules)
    for _ in range(4):
        world.pay(["u0", "u1"], 10)
    world.run()
    assert sum(what == Decision.PAID for what, *_ in world.party("u1").certificates) == certified
    assert bool(obligations(world)) == (certified > 3)


# a hunt


class Partial(Fault):
    """Talks to some alone, which may depend on the kind of message; lies to some of these, and acts out of turn.

    lies: the share of messages that it replaces by another of the same kind. late: the share that it holds back for up
    to 150. Whatever it sends, it signs as itself.
    """

    def __init__(self, world: PSyncPCN, rng: np.random.Generator, by_kind: bool, lies: float, late: float):
        self.world, self.rng, self.by_kind, self.lies, self.late = world, rng, by_kind, lies, late
        self.heard: dict[tuple, bool] = {}
        self.share, self.orders, self.left = rng.random(), {}, 30 * (lies > 0)

    def outgoing(self, node, to, message):
        kind = (type(message).__name__, getattr(message, "what", None)) if self.by_kind else None
        if not self.heard.setdefault((to.name, kind), self.rng.random() < self.share):
            return []
        said = self.other(node, message) if self.rng.random() < self.lies else message
        if self.rng.random() < self.late:
            node.sim.timer(node, node.sim.now + 150 * self.rng.random(), node.sim.transmit, (node, to, said))
            return []
        return [(to, said)]

    def other(self, node, message):
        words = (Decision.LOCK, Decision.ABORT, Decision.PAID, Decision.READY)
        if isinstance(message, Share):
            what = words[self.rng.integers(4)]
            signature = node.keys.sign(node.name, ("share", what, message.cid, message.pid))
            return message._replace(what=what, signature=signature)
        if isinstance(message, PrePrepare | Prepare | Commit | NewView):
            pids = [*self.orders] or [message.value[0]]
            value = pids[self.rng.integers(len(pids))], words[self.rng.integers(2)]
            statement = (type(message).__name__, message.cid, message.slot, message.view, value)
            return message._replace(value=value, signature=node.keys.sign(node.name, statement))
        if isinstance(message, ViewChange):
            statement = ("ViewChange", message.cid, message.slot, message.view, None)
            return message._replace(prepared=None, signature=node.keys.sign(node.name, statement))
        return message

    def incoming(self, node, sender, message):
        order = message if isinstance(message, Order) else getattr(message, "order", None)
        if order is not None:
            self.orders[order.pid(node.keys)] = order
        if self.left and self.orders and isinstance(node, PSyncPCNMember) and self.rng.random() < 0.3:
            self.left -= 1
            pid = [*self.orders][self.rng.integers(len(self.orders))]
            order = self.orders[pid]
            value = pid, Decision.LOCK
            if self.rng.random() < 0.5:
                share = Share(Decision.LOCK, node.cid, pid, order, None)
                said, cid = self.other(node, share), order.cids[self.rng.integers(len(order.cids))]
            else:
                kind, view = (PrePrepare, Prepare, Commit)[self.rng.integers(3)], int(self.rng.integers(2))
                said, cid = self.other(node, kind(node.cid, int(self.rng.integers(3)), view, value, None)), node.cid
            for member in self.world.members(cid):
                if member is not node and self.rng.random() < self.share:
                    node.sim.transmit(node, member, said)
        return True


def hunted(seed: int, ordering: str, extra: int = 0) -> PSyncPCN:
    """A small world in which f + extra members of each committee, and sometimes the sender, are `Partial`.

    Links keep their delays, and some take a hundred or ten thousand times as long as others. Without an ordering coins
    suffice for all payments; payments spend the same coins otherwise.
    """
    rng = np.random.default_rng([seed, 7])
    n, f = int(rng.choice([1, 2, 2, 2, 3])), int(rng.choice([1, 1, 1, 1, 2]))
    pool = ([1.0, 1.0, 100.0], [1.0, 100.0, 1e4], [1.0, 1.0, 1.0, 300.0], [1.0])[rng.integers(4)]
    table: dict[tuple, float] = {}
    fine = rng.random() < 0.5

    def links(sender, to, message) -> float:
        key = sender.name, to.name, type(message) if fine else None
        if key not in table:
            table[key] = pool[rng.integers(len(pool))]
        return table[key]

    any_order = ordering != "agreed" and rng.random() < 0.2
    sim: Simulation = Simulation((links, links, links, unit, within(1.0, rng))[rng.integers(5)])
    if any_order:
        sim = Asynchronous(at_random(rng), patience=int(rng.integers(10, 200)), duplicate=0.1, rng=rng)
    left, right = (200, 200) if ordering == "none" else (int(rng.choice([10, 15, 200])), int(rng.choice([0, 15])))
    more = {"commit": COMMITS[rng.integers(2)], "echo": bool(rng.random() < 0.5)}
    if ordering != "agreed" and more["commit"] == "return" and rng.random() < 0.1:
        more["relay"] = "party"
    world = PSyncPCN(line(n, f, left, right), sim=sim, seed=seed, ordering=ordering, **more)
    for cid in range(n):
        for k in rng.permutation(3 * f + 1)[: f + extra]:
            habits = rng.random() < 0.6, rng.choice([0, 0, 0.3]), rng.choice([0, 0, 0.3])
            world.corrupt(world.members(cid)[k], Partial(world, rng, *habits))
    if ordering != "payer" and "relay" not in more and rng.random() < 0.3:
        world.corrupt(world.party("u0"), Partial(world, rng, False, 0.0, 0.0))
    for _ in range(1 if rng.random() < 0.5 else int(rng.integers(2, 5))):
        path = names(n) if rng.random() < 0.7 else names(n)[::-1]
        path = path[int(rng.integers(n)) if rng.random() < 0.3 else 0 :]
        amount, at, fee = int(rng.integers(4, 11)), float(rng.choice([0, 0, 2, 30])), int(rng.integers(2))
        most = left + right - fee * (len(path) - 2)  # that the first hop can carry
        world.pay(path, min(amount, most), at=at, fee=fee)
    return world


def found(world: PSyncPCN) -> list[str]:
    """What is wrong with a hunted world, on the way and in the end.

    Without an ordering and an echo, a faulty sender may leave reservations behind (R5), but nobody honest loses coins.
    """
    griefed = "u0" in world.faulty and world.rules.ordering == "none" and not world.rules.echo
    wrong = watched(world, [name for name in SAFETY if name != "R5" or not griefed])
    return wrong if griefed else wrong + unfinished(world)


@pytest.mark.parametrize(("ordering", "count"), [("none", 250), ("payer", 200), ("agreed", 100)])
def test_the_hunt_finds_nothing(ordering, count):
    for seed in range(count):
        world = hunted(seed, ordering)
        assert not found(world), (seed, world.rules)


@pytest.mark.parametrize("ordering", ["none", "payer", "agreed"])
def test_the_hunt_finds_losses_at_one_faulty_member_too_many(ordering):
    lost = set()
    for seed in range(60):
        world = hunted(seed, ordering, extra=1)
        world.run(1e5)
        world.correct = lambda cid: True
        lost |= {violation.requirement for violation in check(world, ("R1", "R2", "R5"))}
    assert lost


def mirrored(first: int, second: int, late: int) -> tuple:
    """The smallest of all that these subsets of three look like when honest members change places."""
    bits = [[mask >> k & 1 for k in range(3)] for mask in (first, second, late)]
    return tuple(sorted(bits[0])), tuple(sorted(zip(bits[1], bits[2], strict=True)))


@pytest.mark.parametrize("ordering", ["none", "payer", "agreed"])
@pytest.mark.parametrize("commit", COMMITS)
@pytest.mark.parametrize("coins", [100, 5])
def test_every_choice_of_whom_two_faulty_members_talk_to_and_to_whom_the_order_comes_late(ordering, commit, coins):
    """Two hops, one faulty member in each committee: all subsets, up to the names of honest members."""
    cases = {mirrored(*masks): masks for masks in product(range(8), repeat=3)}
    for first, second, late in cases.values():

        def delay(sender, to, message, late=late) -> float:
            return 100.0 if isinstance(message, Order) and to.name in {f"C1.{k + 1}" for k in bits(late)} else 1.0

        topology = Topology((("u0", "u1", 100, 100), ("u1", "u2", coins, 100)))
        world = PSyncPCN(topology, sim=Simulation(delay), ordering=ordering, commit=commit)
        world.corrupt(world.members(0)[3], Selective(["u0", "u1", "C2.4", *(f"C2.{k + 1}" for k in bits(first))]))
        world.corrupt(world.members(1)[3], Selective(["u1", "u2", "C1.4", *(f"C1.{k + 1}" for k in bits(second))]))
        payment = world.pay(names(2), 10)
        assert not watched(world) and not unfinished(world), (first, second, late)
        paid = coins >= 10
        assert set(world.outcomes(payment)) == {Outcome.PAID if paid else Outcome.REFUNDED}, (first, second, late)


def bits(mask: int) -> list[int]:
    return [k for k in range(3) if mask >> k & 1]
