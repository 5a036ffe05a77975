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

    ordering: how members of one committee come to see competing payments in the same order.

    - By agreement ("agreed", V3, `swarmbook.payments.pbft`), the default: nothing is assumed of parties or of how much
      is paid at once. Nobody honest loses coins whatever the delays. Payments end once the network is stable, for
      without a bound on delays no committee agrees for certain (Fischer, Lynch, Paterson, 1985).
    - By the payer's numbers ("payer", V2): whoever pays in a channel is live and honest, and says what to lock. A payer
      that numbers its orders differently for different members can have more locked than there is, and whom it pays
      loses. Progress needs no bound on delays.
    - Not at all ("none", V1): the coins of a channel have to suffice for all payments in any order. If they do not,
      payments get stuck, too much may be locked, and somebody honest loses. Progress needs no bound on delays, and this
      takes the fewest messages. It is for payments that do not compete.

    The abstract asks for an asynchronous network, correct channels, and at most f of 3f + 1 faulty members. "agreed"
    keeps coins safe under these alone, and asks for more where it has to wait. The others make progress under these
    alone, and ask for more to keep coins safe. No rule can do both: several payers' orders for one balance need
    agreement (Guerraoui et al., 2019). A user who says nothing gets the one that is safe.

    relay: who carries what a committee has decided to the next one, the "committee" itself or a "party".
    commit: coins move on the way back from the receiver ("return"), or from the sender's side on once the coins of all
    hops are reserved ("forward"; needs relay="committee").
    echo: members of the first committee pass a sender's order on among themselves, so that a faulty sender that reaches
    only some of them cannot leave a reservation behind. No honest party loses coins without it.
    view_timeout: how long members wait for the first leader with ordering="agreed", in the simulation's unit of time.
    """

    ordering: str = "agreed"
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
