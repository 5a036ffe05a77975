"""Plausible mistakes in the protocols, which the directed attacks must notice.

Serves: the table of mutants; claim S11.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from swarmbook.payments.attacks import DIRECTED
from swarmbook.payments.channel_committee import CommitteeMember
from swarmbook.payments.psyncpcn import PSyncPCNMember
from swarmbook.payments.signatures import Committee
from swarmbook.payments.syncpcn import SyncPCNMember, SyncPCNParty, Timing

MUTANTS = {  # (class, attribute, what it becomes), ...
    "the quorum is 2 f": [(Committee, "quorum", property(lambda self: 2 * self.faulty))],
    "members vote as often as they are asked": [(SyncPCNMember, "may_vote", lambda self, about, decision: True)],
    "hops expire delta apart": [(Timing, "margin", property(lambda self: self.delta))],
    "members ignore numbers": [
        (CommitteeMember, "next", lambda self, seq: True),
        (SyncPCNMember, "fresh", lambda self, seq: True),
    ],
    "a payee goes on before the certificate": [
        (
            *(SyncPCNParty, "await_certificate"),
            lambda self, end, seq, change: self.secured(end.cid, change.lock, self.clock),
        )
    ],
    "refunds begin at T_i": [(Timing, "refund_wait", property(lambda self: 0.0))],
    "committees heed any other": [(PSyncPCNMember, "adjacent", lambda self, entry, place, step: True)],
}


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """The protocols with one mistake, and as they were afterwards."""
    kept = [(owner, attribute, owner.__dict__[attribute]) for owner, attribute, _ in MUTANTS[name]]
    try:
        for owner, attribute, value in MUTANTS[name]:
            setattr(owner, attribute, value)
        yield
    finally:
        for owner, attribute, value in kept:
            setattr(owner, attribute, value)


def caught_by() -> list[str]:
    """The directed attacks that find something wrong, by name."""
    return [attack.__name__ for attack in DIRECTED if attack()]
