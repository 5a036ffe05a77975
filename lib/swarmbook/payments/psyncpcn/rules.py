"""Which variant of PSyncPCN a world runs.

Serves: the rows "PSyncPCN, V1", "V2", "V3" and "carried by parties" of the cost table (S4), and claims S9 and S10.
"""

from dataclasses import dataclass

from swarmbook.errors import ConfigError, finite, unknown

ORDERINGS = ("none", "payer", "agreed")
RELAYS = ("committee", "party")
COMMITS = ("return", "forward")


@dataclass(frozen=True)
class Rules:
    """What members and parties have agreed on beforehand.

    Raises ConfigError for words that are not listed here, and for a time that is none.

    ordering: how members of one committee come to see competing payments in the same order. Not at all ("none", V1):
    the coins have to suffice for all payments in any order, or payments get stuck and too much may be locked. By the
    payer's numbers ("payer", V2): payers are live and honest, and say what to lock. By agreement ("agreed", V3,
    `swarmbook.payments.pbft`): nothing is assumed of parties, and every payment ends once the network is stable.
    relay: who carries what a committee has decided to the next one, the "committee" itself or a "party".
    commit: coins move on the way back from the receiver ("return"), or from the sender's side on once the coins of all
    hops are reserved ("forward"; needs relay="committee").
    echo: members of the first committee pass a sender's order on among themselves, so that a faulty sender that reaches
    only some of them cannot leave a reservation behind. No honest party loses coins without it.
    view_timeout: how long members wait for the first leader with ordering="agreed", in the simulation's unit of time.
    """

    ordering: str = "none"
    relay: str = "committee"
    commit: str = "return"
    echo: bool = False
    view_timeout: float = 8.0

    def __post_init__(self) -> None:
        for what, known in (("ordering", ORDERINGS), ("relay", RELAYS), ("commit", COMMITS)):
            if (value := getattr(self, what)) not in known:
                raise ConfigError(unknown(what, value, known))
        finite("view_timeout", self.view_timeout, 0, above=True)
        if not isinstance(self.echo, bool):
            raise ConfigError(f"echo={self.echo!r} is refused: give True or False")
        if self.relay == "party" and self.forward:
            raise ConfigError('commit="forward" needs relay="committee": no party sits between C_n and C_1')

    @property
    def forward(self) -> bool:
        return self.commit == "forward"
