"""SyncPCN: deadlines, messages, committee members, parties, and the protocol over a topology."""

from swarmbook.payments.syncpcn.member import SyncPCNMember
from swarmbook.payments.syncpcn.messages import Claim, Concede, NewerState, RefundRequest, Setup, Vote
from swarmbook.payments.syncpcn.party import SyncPCNParty
from swarmbook.payments.syncpcn.timing import Timing
from swarmbook.payments.syncpcn.world import SyncPCN

__all__ = [
    "Claim",
    "Concede",
    "NewerState",
    "RefundRequest",
    "Setup",
    "SyncPCN",
    "SyncPCNMember",
    "SyncPCNParty",
    "Timing",
    "Vote",
]
