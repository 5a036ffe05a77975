"""Small worlds in which violations are searched: protocol, hops, payments, and which nodes the adversary has.

A `Setting` describes a world. `settings` lists those of one and two hops, one and two payments and committees of four,
with every choice of faulty parties, and of one faulty member in each committee, up to symmetry:

- A faulty member may behave as an honest one does, so that fewer faulty members add nothing. Members of one committee
  differ only where they lead (`ordering="agreed"`), so that elsewhere the last one stands for all.
- Requirements protect honest parties alone, so that every set of faulty parties is a world of its own.

Serves: the search for violations.
"""

from itertools import combinations
from typing import NamedTuple

AGREED = (("ordering", "agreed"),)
SAFETY = ("R1", "R2", "R3", "R4", "R5", "R6", "R8", "R11")


class Pay(NamedTuple):
    """One payment: forwards from u0, or backwards to it; over all hops, or over the last `hops` alone."""

    amount: int
    at: float = 0.0
    backwards: bool = False
    first: int = 0  # the first party of the path, counted from the left
    last: int | None = None


class Setting(NamedTuple):
    """A small world.

    faulty: names of the adversary's nodes. rules: of PSyncPCN. bound: the longest delay between honest nodes; for
    SyncPCN 1.0 is what it relies on. skew: how far clocks may be apart, as SyncPCN knows. trusted: judge every
    committee as if it were correct, for worlds with more than f faulty members.
    """

    protocol: str
    hops: int
    payments: tuple[Pay, ...]
    faulty: tuple[str, ...] = ()
    rules: tuple[tuple[str, str | bool], ...] = ()
    balance: int = 100
    other: int = 100
    bound: float = 1.0
    skew: float = 0.0
    trusted: bool = False

    def __str__(self) -> str:
        options = "".join(f", {name}={value}" for name, value in self.rules)
        options += f", {self.balance} coins" * (self.balance != 100) + f", skew {self.skew}" * (self.skew > 0)
        faulty = "+".join(self.faulty) or "nobody"
        return f"{self.protocol}{options}, {self.hops} hops, {len(self.payments)} payments, faulty: {faulty}"

    @property
    def requirements(self) -> tuple[str, ...]:
        """What is judged.

        Only committees that agree on a sequence promise that every lock ends (R5) whatever faulty parties do. Without,
        a sender can leave its own coins locked by orders that compete, a payer by its numbers, a carrier by silence,
        which can also leave a sender without a receipt (R2). A single payment among honest parties with enough coins
        has to succeed (R7); with "agreed" a faulty leader may refuse it.
        """
        rules, parties = dict(self.rules), any(name.startswith("u") for name in self.faulty)
        disordered = self.protocol == "PSyncPCN" and rules.get("ordering") != "agreed"
        left = {"R5"} if disordered and parties else set()
        if rules.get("relay") == "party" and parties:
            left.add("R2")
        needs = max(payment.amount for payment in self.payments)
        alone = not parties and len(self.payments) == 1 and needs <= self.balance
        succeeds = alone and rules.get("ordering") != "agreed"
        return tuple(name for name in SAFETY if name not in left) + ("R7",) * succeeds


def faulty_sets(hops: int, leading: bool) -> list[tuple[str, ...]]:
    """Every choice of faulty parties, each with one faulty member in every committee.

    leading: members lead, so that the first, the second and the last of a committee differ; with two hops the choices
    of both committees are combined.
    """
    parties = [f"u{i}" for i in range(hops + 1)]
    chosen = [subset for size in range(len(parties)) for subset in combinations(parties, size)]
    places = (1, 2, 4) if leading else (4,)
    members: list[tuple[str, ...]] = [()]
    for cid in range(hops):
        members = [(*others, f"C{cid + 1}.{k}") for others in members for k in places]
    return [(*subset, *corrupt) for subset in chosen for corrupt in members]


def settings(protocol: str, hops: int, payments: int, **options: str | bool) -> list[Setting]:
    """The worlds of a protocol with so many hops and payments, for every choice of faulty nodes up to symmetry.

    options: the rules of PSyncPCN. Its members accept competing payments only with an ordering, so that there are no
    two payments without one.
    """
    leading = options.get("ordering") == "agreed"
    plans: list[tuple[Pay, ...]] = [(Pay(10),)]
    balance = 100
    if payments == 2:
        plans = [(Pay(10), Pay(10, 0.7)), (Pay(10), Pay(4, 0.7, backwards=True))]
        if hops == 2:
            plans.append((Pay(10), Pay(1, 0.5, backwards=True, first=1)))
    bound = 1.0 if protocol == "SyncPCN" else 300.0
    rules = tuple(sorted(options.items()))
    return [
        Setting(protocol, hops, plan, faulty, rules, balance=balance, bound=bound)
        for plan in plans
        for faulty in faulty_sets(hops, leading)
    ]


ONE, TWO = (Pay(10),), (Pay(10), Pay(10, 0.7))
BACK, LAST = (Pay(10), Pay(4, 0.7, backwards=True)), (Pay(10), Pay(1, 0.5, backwards=True, first=1))
CROSS, LATER = (Pay(10), Pay(4, backwards=True)), (Pay(10), Pay(10, 12.0))
# a payment that spends what another one in the other direction has brought
SPENT, BROUGHT = (Pay(10), Pay(12, 5.0, backwards=True)), (Pay(10, backwards=True), Pay(10, 20.0))
BOTH = "C1.4", "C2.4"
# A few worlds that differ as much as possible: who is faulty, which payments cross, coins that do not suffice for all.
PORTFOLIO: dict[str, list[Setting]] = {
    "SyncPCN": [
        Setting("SyncPCN", 1, TWO, ("u0", "C1.4"), balance=15),
        Setting("SyncPCN", 1, TWO, ("u0", "C1.4")),
        Setting("SyncPCN", 1, ONE, ("u0", "C1.4"), skew=0.5),
        Setting("SyncPCN", 1, BACK, ("u0", "C1.4")),
        Setting("SyncPCN", 1, BACK, ("u1", "C1.4"), skew=0.5),
        Setting("SyncPCN", 1, TWO, ("C1.4",)),
        Setting("SyncPCN", 1, CROSS, ("C1.4",)),
        Setting("SyncPCN", 1, LATER, ("u0", "C1.4")),
        Setting("SyncPCN", 2, ONE, ("u0", *BOTH)),
        Setting("SyncPCN", 2, ONE, ("u1", *BOTH)),
        Setting("SyncPCN", 2, ONE, ("u2", *BOTH)),
        Setting("SyncPCN", 2, ONE, ("u0", "u2", *BOTH)),
        Setting("SyncPCN", 2, LAST, ("u0", "u2", *BOTH)),
        Setting("SyncPCN", 2, LAST, ("u2", *BOTH)),
        Setting("SyncPCN", 2, BACK, ("u0", "u2", *BOTH), skew=0.5),
        Setting("SyncPCN", 2, TWO, BOTH),
        Setting("SyncPCN", 2, ONE, BOTH, skew=0.5),
    ],
    "PSyncPCN": [
        Setting("PSyncPCN", 2, ONE, ("u0", *BOTH), (("echo", True),), bound=300.0),
        Setting("PSyncPCN", 2, ONE, ("u2", *BOTH), (("commit", "forward"),), balance=9, bound=300.0),
        Setting("PSyncPCN", 2, ONE, BOTH, bound=300.0),
        Setting("PSyncPCN", 2, ONE, BOTH, (("relay", "party"),), bound=300.0),
        Setting("PSyncPCN", 3, ONE, (*BOTH, "C3.4"), bound=300.0),
        Setting("PSyncPCN", 1, TWO, ("C1.4",), (("ordering", "payer"),), balance=15, bound=300.0),
        Setting("PSyncPCN", 1, SPENT, ("C1.4",), (("ordering", "payer"),), other=5, bound=300.0),
        Setting("PSyncPCN", 1, ONE, ("C1.1",), AGREED, balance=9, bound=100.0),
        Setting("PSyncPCN", 1, ONE, ("C1.2",), AGREED, balance=9, bound=100.0),
        Setting("PSyncPCN", 1, ONE, ("C1.1",), AGREED, bound=300.0),
        Setting("PSyncPCN", 1, ONE, ("C1.2",), AGREED, bound=300.0),
        Setting("PSyncPCN", 1, TWO, ("C1.2",), AGREED, balance=15, bound=100.0),
        Setting("PSyncPCN", 1, BACK, ("u0", "C1.1"), AGREED, balance=9, bound=100.0),
        Setting("PSyncPCN", 1, TWO, ("u0", "C1.1"), AGREED, bound=100.0),
        Setting("PSyncPCN", 2, TWO, ("C1.1", "C2.2"), AGREED, balance=15, bound=100.0),
        Setting("PSyncPCN", 2, BROUGHT, ("C1.1", "C2.2"), AGREED, balance=5, bound=100.0),
        Setting("PSyncPCN", 2, ONE, ("u0", "C1.1", "C2.2"), AGREED, bound=100.0),
    ],
}


def everything() -> list[Setting]:
    """All worlds of the search: of SyncPCN with clocks that agree and that do not, of PSyncPCN by its rules."""
    found = [setting for settings in PORTFOLIO.values() for setting in settings]
    for hops in (1, 2):
        for payments in (1, 2):
            found += settings("SyncPCN", hops, payments)
            found += [setting._replace(skew=0.5) for setting in settings("SyncPCN", hops, payments)]
            found += settings("PSyncPCN", hops, payments, ordering="agreed")
        for rules in ({}, {"echo": True}, {"commit": "forward"}, {"ordering": "payer"}, {"relay": "party"}):
            # who pays is honest with "payer", and every party can give an order by which it pays
            payers = {f"u{i}" for i in range(hops + 1)} if rules.get("ordering") == "payer" else set()
            found += [s for s in settings("PSyncPCN", hops, 1, **rules) if not payers & set(s.faulty)]
    return list(dict.fromkeys(found))
