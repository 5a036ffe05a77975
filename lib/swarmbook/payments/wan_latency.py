"""How long payments take across the world: everybody at a random place, delays from measured round trips.

- `data/wan_delays.csv` has round trips in milliseconds between AWS regions (January 2019) and between Azure regions
  (2026). `delays` halves them. A third set, Google's, comes from `data/links.csv`, whose latencies are one-way.
- `latencies` runs the protocols message by message, with the same places for all of them, without jitter or computing
  time.
- `flows` computes the same times without messages, from quorums as order statistics: a million payments in a minute.

Serves: the table and the figure of latencies, and the choice of delta (`jitter`).
"""

import csv
import functools
from collections.abc import Callable
from functools import partial

import numpy as np

from swarmbook.errors import ConfigError, DataError, finite, unknown, whole
from swarmbook.locations import data_folder
from swarmbook.payments.lightning import Lightning
from swarmbook.payments.payment_network import line
from swarmbook.payments.psyncpcn import PSyncPCN
from swarmbook.payments.simulation import Node, Simulation
from swarmbook.payments.syncpcn import SyncPCN, Timing
from swarmbook.simulation.network import links

SAME_PLACE = 0.5  # milliseconds, one way
TABLES = ("aws", "azure", "google")


@functools.cache
def delays(table: str) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of N places, and the one-way delays between them in milliseconds [N, N]; 0.5 within one place.

    table: "aws", "azure" or "google". Raises ConfigError for another one, and DataError if the file is missing or
    damaged.
    """
    if table == "google":
        known = links("google")
        places = tuple(sorted(frozenset().union(*known)))
        matrix = np.array([[known.get(frozenset((a, b)), (0.0,))[0] for b in places] for a in places])
    elif table in TABLES:
        places, matrix = _measured(table)
        matrix = matrix / 2
    else:
        raise ConfigError(unknown("table of delays", table, TABLES))
    np.fill_diagonal(matrix, SAME_PLACE)
    matrix.flags.writeable = False
    return places, matrix


def _measured(table: str) -> tuple[tuple[str, ...], np.ndarray]:
    path = data_folder() / "wan_delays.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["table"] == table]
        matrix = np.array([[float(value) for value in row["rtt_ms"].split()] for row in rows])
        if matrix.shape != (len(rows), len(rows)) or not len(rows):
            raise ValueError(f"{table} is not a square table")
        return tuple(row["place"] for row in rows), matrix
    except (OSError, KeyError, AttributeError, ValueError) as error:
        raise DataError(f"cannot read the delays in {path}: {error!r}; restore it with git checkout") from error


def placed(rows: list[list[float]]) -> Callable[[Node, Node, object], float]:
    """Delays between the places at which nodes are (`Node.site`)."""
    return lambda sender, to, message: rows[sender.site][to.site]


PROTOCOLS = {
    "Lightning": Lightning,
    "SyncPCN": partial(SyncPCN, timing=Timing(1000.0)),  # above any delay in the tables
    "PSyncPCN": partial(PSyncPCN, ordering="none"),  # payments do not compete
}


def latencies(
    table: str, hops: int, faulty: int, trials: int, rng: np.random.Generator
) -> dict[tuple[str, str], np.ndarray]:
    """Milliseconds [trials] until the receiver is safe and until the sender has its receipt, for each of `PROTOCOLS`.

    Keys are (protocol, "receiver safe" or "receipt"). All protocols see the same places of the parties u_0 ... u_n and
    of the members of every committee. table: of delays. faulty: f of the committees.
    """
    matrix = delays(table)[1]
    rows = matrix.tolist()
    times: dict[tuple[str, str], list[float]] = {}
    for parties, members in zip(*map(np.ndarray.tolist, _sites(len(rows), hops, faulty, trials, rng)), strict=True):
        for kind, protocol in PROTOCOLS.items():
            world = protocol(line(hops, faulty), sim=Simulation(placed(rows)))
            for i, site in enumerate(parties):
                world.party(f"u{i}").site = site
            for cid in range(hops):
                for member, site in zip(world.members(cid), members[cid], strict=False):
                    member.site = site
            payment = world.pay([f"u{i}" for i in range(hops + 1)], 10)
            world.run()
            for what in ("receiver safe", "receipt"):
                times.setdefault((kind, what), []).append(payment.time(what))
    return {key: np.array(values) for key, values in times.items()}


def _sites(places: int, hops: int, faulty: int, trials: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Where everybody is: parties [trials, n + 1] and members [trials, n, m]."""
    whole("hops", hops, 1), whole("faulty", faulty), whole("trials", trials, 1)
    parties = rng.integers(places, size=(trials, hops + 1), dtype=np.int16)
    return parties, rng.integers(places, size=(trials, hops, 3 * faulty + 1), dtype=np.int16)


CHUNK = 20_000  # payments computed at once by `flows`


def flows(
    table: str, hops: int, faulty: int, trials: int, rng: np.random.Generator
) -> dict[tuple[str, str], np.ndarray]:
    """What `latencies` returns, for the same generator at the same places, without sending messages.

    SyncPCN certifies a lock when the payee has had q answers; a member of PSyncPCN acts on the q-th share that arrives.
    """
    matrix = delays(table)[1]
    parties, members = _sites(len(matrix), hops, faulty, trials, rng)
    parts = [
        _flows(matrix, parties[at : at + CHUNK], members[at : at + CHUNK], 2 * faulty + 1)
        for at in range(0, trials, CHUNK)
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _flows(matrix: np.ndarray, parties: np.ndarray, members: np.ndarray, quorum: int) -> dict:
    def complete(times: np.ndarray) -> np.ndarray:
        """When the q-th of the last axis is there."""
        return np.partition(times, quorum - 1, axis=-1)[..., quorum - 1]

    def passed_on(times: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """When each member of a committee [trials, m] has a quorum of shares that another one sends at these times."""
        return complete(times[:, None, :] + matrix[source[:, None, :], target[:, :, None]])

    hops = members.shape[1]
    sender, receiver = parties[:, :1], parties[:, -1:]
    along, back = matrix[parties[:, :-1], parties[:, 1:]], matrix[parties[:, 1:], parties[:, :-1]]  # (trials, n)
    returned = back.sum(axis=1)
    flights = 2 * along.sum(axis=1) + returned
    locked = np.zeros(len(parties))
    for i in range(hops):
        payee = parties[:, i + 1, None]
        answers = matrix[payee, members[:, i]] + matrix[members[:, i], payee]
        told = matrix[parties[:, 0], parties[:, i + 1]]  # of what comes next
        locked = np.maximum(locked + along[:, i] + complete(answers), told)
    acted = matrix[sender, members[:, 0]]
    for i in range(1, hops):
        acted = passed_on(acted, members[:, i - 1], members[:, i])
    safe = complete(acted + matrix[members[:, -1], receiver])
    for i in range(hops - 1, 0, -1):
        acted = passed_on(acted, members[:, i], members[:, i - 1])
    return {
        ("Lightning", "receiver safe"): flights,
        ("Lightning", "receipt"): flights + returned,
        ("SyncPCN", "receiver safe"): locked,
        ("SyncPCN", "receipt"): locked + returned,
        ("PSyncPCN", "receiver safe"): safe,
        ("PSyncPCN", "receipt"): complete(acted + matrix[members[:, 0], sender]),
    }


def jitter(rng: np.random.Generator, shape: int | tuple[int, ...], cap: float = 1000.0) -> np.ndarray:
    """Milliseconds added to a one-way delay: half of a generalised Pareto (shape 1.4, location -0.3, scale 0.35).

    The heavy tail has no mean; `cap` bounds the round trip. Negative values count as 0.
    """
    finite("cap", cap, 0)
    uniform = rng.random(shape)
    pareto = -0.3 + 0.35 * ((1 - uniform) ** -1.4 - 1) / 1.4
    return np.clip(pareto, 0, cap) / 2
