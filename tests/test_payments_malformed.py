"""Messages of faulty nodes with fields of another type: whoever is honest drops them, and nobody honest loses."""

import numpy as np
import pytest

from swarmbook.payments.adversary import Fault
from swarmbook.payments.channel import Lock
from swarmbook.payments.channel_committee import Announce
from swarmbook.payments.lock_conditions import PRIME, SCHEMES
from swarmbook.payments.model_checking.forging import SIGNED
from swarmbook.payments.payment_network import line
from swarmbook.payments.psyncpcn import PSyncPCN
from swarmbook.payments.requirements import check, invariants
from swarmbook.payments.signatures import Keys
from swarmbook.payments.simulation import Simulation, within
from swarmbook.payments.syncpcn import Setup, SyncPCN

WRONG = None, -1, 0, 2**70, 1.5, float("nan"), "x", b"x", True, (), (None,), ("x", 1, None), [], {}, ["x"]
SAFETY = ("R1", "R2", "R3", "R6", "R8", "R11")


class Garbling(Fault):
    """Before each message, sends it with one part replaced, signed by this node where that is what it signs."""

    def __init__(self, rng: np.random.Generator, copies: int, truth: float):
        self.rng, self.copies, self.truth = rng, copies, truth
        self.made: set[tuple[str, str]] = set()

    def outgoing(self, node, to, message):
        garbled = [self.signed(node, self.garbled(message, type(message).__name__)) for _ in range(self.copies)]
        sent = [(to, copy) for copy in garbled if copy is not None]
        return [*sent, (to, message)] if self.rng.random() < self.truth else sent

    def garbled(self, message, path):
        """A message of the same class, with one of its parts or of their parts replaced."""
        at = int(self.rng.integers(len(message)))
        name = message._fields[at] if hasattr(message, "_fields") else str(at)
        part = message[at]
        if isinstance(part, tuple) and part and self.rng.random() < 0.6:
            new = self.garbled(part, f"{path}.{name}")
        else:
            new = WRONG[self.rng.integers(len(WRONG))]
            self.made.add((f"{path}.{name}", type(new).__name__))
        parts = [*message[:at], new, *message[at + 1 :]]
        return tuple.__new__(type(message), parts)

    def signed(self, node, message):
        kind = type(message)
        sign = node.keys.sign
        try:
            if kind in SIGNED and hasattr(message, "signature"):
                statement = SIGNED[kind]({k: v for k, v in message._asdict().items() if k != "signature"})
                return message._replace(signature=sign(node.name, statement))
            if kind is Announce:
                statement = ("state", message.cid, message.seq, message.root)
                return message._replace(left=sign("u0", statement), right=sign("u1", statement))
        except TypeError:  # what cannot be encoded cannot be signed either
            return None
        return message


def test_no_party_passes_on_what_has_a_condition_that_is_no_lock():
    """Adding a step to such a condition gives nothing, which is also the lock that the key 0 opens."""
    x, y = SCHEMES["point"].lock(5)
    for condition in ("x", (x, y + 1), (x, PRIME + y), (1, 2, 3), 5, ()):
        for other in (None, (x, y), "x"):
            world = SyncPCN(line(2), lock="point")
            world.members(0), world.members(1)
            locks = Lock(1, 0, 10, condition, 20.0), Lock(2, 0, 10, other, 9.0)
            world.corrupt(world.party("u0"))
            world.party("u0").send(world.party("u1"), Setup((0, locks[0]), (1, locks[1]), 5, None))
            world.run()
            assert not world.party("u1").inbound, (condition, other)


KINDS = {
    "SyncPCN": (SyncPCN, {}),
    "PSyncPCN, none": (PSyncPCN, {"ordering": "none", "echo": True}),
    "PSyncPCN, payer": (PSyncPCN, {"ordering": "payer"}),
    "PSyncPCN, agreed": (PSyncPCN, {"ordering": "agreed", "commit": "forward"}),
    "PSyncPCN, carried by parties": (PSyncPCN, {"ordering": "agreed", "relay": "party"}),
}


@pytest.mark.parametrize("mode", ["mock", "cached"])
@pytest.mark.parametrize("name", KINDS)
def test_honest_nodes_drop_what_is_no_message(name, mode):
    kind, more = KINDS[name]
    made = set()
    for seed in range(25 if mode == "mock" else 4):
        rng = np.random.default_rng(seed)
        world = kind(line(2), sim=Simulation(within(1.0, rng)), keys=Keys(mode), seed=seed, **more)
        garbling = Garbling(rng, 3, rng.choice([0.3, 0.7, 0.95]))
        faulty = [world.members(0)[rng.integers(4)], world.members(1)[rng.integers(4)]]
        parties = [["u0", "u1"], ["u2"], ["u0"], ["u1"], []][seed % 5]
        if more.get("ordering") == "payer":
            parties = []  # whoever pays is honest
        for node in [*faulty, *map(world.party, parties)]:
            world.corrupt(node, garbling)
        world.pay(["u0", "u1", "u2"], 10)
        world.pay(["u2", "u1"], 3, at=2.0)
        world.run()
        assert not check(world, SAFETY) and not invariants(world), (seed, parties)
        made |= garbling.made
    assert len({path for path, _ in made}) > 12  # fields, at all depths
