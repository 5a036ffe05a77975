"""PSyncPCN: rules, messages, committee members, parties, and the protocol over a topology."""

from swarmbook.payments.psyncpcn.member import PSyncPCNMember
from swarmbook.payments.psyncpcn.messages import AskNumber, CarriedCertificate, Number, Order, Share
from swarmbook.payments.psyncpcn.party import PSyncPCNParty
from swarmbook.payments.psyncpcn.rules import Rules
from swarmbook.payments.psyncpcn.world import PSyncPCN

__all__ = [
    "AskNumber",
    "CarriedCertificate",
    "Number",
    "Order",
    "PSyncPCN",
    "PSyncPCNMember",
    "PSyncPCNParty",
    "Rules",
    "Share",
]
