"""What a payment costs, in closed form: messages, delays, bytes and time for which coins are locked.

n is the number of hops, f the most faulty members of a committee, m = 3 f + 1 its size. Messages are point to point,
counted when sent, without those to oneself. A delay is one message after another. The forms are of the protocols as
they stand in this package. Its tests and notebook find the same numbers by counting; the paper's text confirms none of
them.

Serves: the cost table and figures, the longest lock of a hop, the table of griefing; claims S4 and S5.
"""

from collections.abc import Callable
from dataclasses import dataclass

from swarmbook.errors import ConfigError, finite, unknown, whole

SIZES = {  # bytes of the parts of a message
    **dict(signature=64, member=2, hash=32, seq=8, pid=16, amount=8, time=8, point=32, scalar=32, header=16),
}


def size(faulty: int) -> int:
    """m, the members of a committee."""
    return 3 * whole("faulty", faulty) + 1


@dataclass(frozen=True)
class Cost:
    """Closed forms of one protocol.

    messages: of (n, f). receiver_safe, receipt, settled: delays until then, of n. network, faults, private: what it
    assumes and claims, in words.
    """

    messages: Callable[[int, int], int]
    receiver_safe: Callable[[int], int]
    receipt: Callable[[int], int]
    settled: Callable[[int], int]
    network: str
    faults: str
    private: str


def _v1(n: int, f: int) -> int:
    """Messages of PSyncPCN without ordering."""
    m = size(f)
    return m * (2 * n + 1) + 2 * (n - 1) * m * m


COSTS = {
    "Lightning, on the wire": Cost(
        lambda n, f: 10 * n,
        lambda n: 3 * n,
        lambda n: 4 * n,
        lambda n: 4 * n + 2,
        *("chain synchrony", "any party", "no"),
    ),
    "HTLC, abstract": Cost(
        lambda n, f: 2 * n, lambda n: n, lambda n: 2 * n, lambda n: 2 * n, "chain synchrony", "any party", "no"
    ),
    "SyncPCN": Cost(
        lambda n, f: n * (4 + 8 * size(f)) + n,
        lambda n: 3 * n,
        lambda n: 4 * n,
        lambda n: 4 * n + 3,
        *("synchronous", "parties, f of m members", "yes"),
    ),
    "PSyncPCN, V1": Cost(
        _v1,
        lambda n: n + 1,
        lambda n: 2 * n,
        lambda n: 2 * n - 1,
        *("asynchronous", "parties, f of m members", "no"),
    ),
    "PSyncPCN, V2": Cost(
        lambda n, f: _v1(n, f) + 2 * n * size(f),
        lambda n: 3 * n + 1,
        lambda n: 4 * n,
        lambda n: 4 * n - 1,
        *("asynchronous, payers live", "f of m members", "no"),
    ),
    "PSyncPCN, V3": Cost(
        lambda n, f: _v1(n, f) + 2 * n * size(f) * (size(f) - 1),
        lambda n: 4 * n + 1,
        lambda n: 5 * n,
        lambda n: 5 * n - 1,
        *("eventually synchronous", "parties, f of m members", "no"),
    ),
    "PSyncPCN, carried by parties": Cost(
        lambda n, f: (4 * n - 2) * size(f) + size(f),  # and the notice to the receiver
        lambda n: 2 * n,
        lambda n: 4 * n - 2,
        lambda n: 4 * n - 3,
        *("asynchronous, parties live", "f of m members", "no"),
    ),
}


def cost(name: str) -> Cost:
    """The closed forms of a protocol. ConfigError for one that is not listed."""
    if name not in COSTS:
        raise ConfigError(unknown("protocol", name, COSTS))
    return COSTS[name]


def direct(faulty: int) -> int:
    """Messages of one update of a single channel: 2 + 4 m (Brick-like, both parties announce)."""
    return 2 + 4 * size(faulty)


def crossover(hops: int) -> int:
    """The smallest f from which on PSyncPCN V1 sends more messages than SyncPCN.

    ConfigError for less than two hops: over one hop PSyncPCN sends fewer for every f.
    """
    whole("hops", hops, 2)
    f = 1
    while COSTS["PSyncPCN, V1"].messages(hops, f) <= COSTS["SyncPCN"].messages(hops, f) - hops:
        f += 1
    return f


def _bytes(*parts: str, extra: int = 0) -> int:
    return SIZES["header"] + sum(SIZES[part] for part in parts) + extra


_LOCK = SIZES["pid"] + SIZES["amount"] + SIZES["point"] + SIZES["time"]
_HTLC = 64  # a signature, for each lock in a commitment
BYTES = {  # of messages, by their class; of Lightning's by their step, with the fields of BOLT 2 and a type of 2 bytes
    "Setup": _bytes("scalar", extra=2 * _LOCK),
    "Propose": _bytes("seq", "hash", "amount", "amount", "hash", "signature", extra=_LOCK),
    "Cosign": _bytes("seq", "hash", "signature"),
    "Announce": _bytes("hash", "seq", "hash", "signature", "signature"),
    "Ack": _bytes("seq", "hash", "member", "signature"),
    "Ask": _bytes("seq"),
    "Grant": _bytes("seq"),
    "Order": _bytes(extra=150),  # and 16 a hop
    "Share": _bytes("seq", "pid", "hash", "member", "signature"),
    "add": 2 + 32 + 8 + 8 + 32 + 4 + 1366,  # channel, number, amount, hash, expiry, onion
    "commit": 2 + 32 + 64 + 2,  # channel, signature, count of locks
    "revoke": 2 + 32 + 32 + 33,  # channel, secret, next point
    "fulfil": 2 + 32 + 8 + 32,  # channel, number, key
    "fail": 2 + 32 + 8 + 2 + 292,  # channel, number, length, reason
}


def bytes_of(message: object) -> int:
    """Bytes of one message of a payment without disputes, whichever protocol sends it.

    A proposal that opens a lock carries the key, a Share to another committee the order, and one of Lightning's
    commitments a signature for the lock that it adds. KeyError for messages of disputes, of which no size is known.
    """
    name, more = type(message).__name__, 0
    if name == "Wire":
        name, more = message.step, _HTLC * (message.step == "commit" and message.what == "add")
    elif name == "Propose":
        more = SIZES["scalar"] * (message.change.what == "open")
    elif name == "Order":
        more = 16 * len(message.cids)
    elif name == "Share" and message.order is not None:
        more = bytes_of(message.order) - SIZES["header"]
    return BYTES[name] + more


def sync_bytes(n: int, f: int) -> int:
    """Bytes of a successful SyncPCN payment: setup, and two updates a hop.

    PROPOSE and COSIGN carry a state and a signature; ANNOUNCE two signatures; ACK one.
    """
    update = BYTES["Propose"] + BYTES["Cosign"] + 2 * size(f) * (BYTES["Announce"] + BYTES["Ack"])
    return n * (BYTES["Setup"] + 2 * update + SIZES["scalar"])


def psync_bytes(n: int, f: int) -> int:
    """Bytes of a successful PSyncPCN V1 payment: an ORDER of 150 + 16 n bytes, in it and in every share."""
    m, order, share = size(f), BYTES["Order"] + 16 * n, BYTES["Share"]
    return m * order + 2 * (n - 1) * m * m * (share + order - SIZES["header"]) + 2 * n * m * share


def lightning_bytes(n: int) -> int:
    """Bytes of a successful Lightning payment on the wire (BOLT 2): two updates a hop, of five messages each."""
    rest = 2 * BYTES["commit"] + 2 * BYTES["revoke"]
    return n * (BYTES["add"] + BYTES["fulfil"] + 2 * rest + 2 * _HTLC)


def lock_bound(n: int, delta: float, hop: int = 1) -> float:
    """Latest time at which a hop of SyncPCN is decided, after the start, whatever anybody does.

    T_i + 4 delta = (7 n - 4 i + 7) delta: T_n = (3 n + 3) delta, each hop before it expires 4 delta later, the payer
    asks for its coins at T_i + 2 delta, and its request and the votes take delta each. One faulty payee is enough: it
    takes the lock and says nothing more.
    """
    return (7 * whole("n", n, 1) - 4 * whole("hop", hop, 1) + 7) * finite("delta", delta, 0)


def lock_denied_by_member(n: int, delta: float, hop: int = 1) -> float:
    """The same where f members of each committee are faulty and nobody else: (4 n - i + 1) delta.

    Nobody waits for more than the 2 f + 1 honest members, so that faulty ones delay nothing. A lock takes 3 delta
    (proposal, announcement, answers), one after the other. The key needs delta a hop on its way back, n - i + 1 hops.
    """
    return (4 * whole("n", n, 1) - whole("hop", hop, 1) + 1) * finite("delta", delta, 0)


def reservation_bound(n: int, hop: int = 1) -> int:
    """When all members of PSyncPCN without a sequence have the end of a hop, in rounds after the order was sent.

    A round is the longest delay from then on. 2 n - i: n rounds until all honest members of C_n pay, n - i back. Faulty
    members delay nothing, for nobody waits for them. A faulty party cannot either, since none is asked. The last hop is
    paid without a reservation.
    """
    return 2 * whole("n", n, 1) - whole("hop", hop, 1)


def reservation_bound_agreed(n: int, timeout: float, faulty: int, hop: int = 1) -> float:
    """The same with ordering="agreed", where `faulty` members of each committee are faulty, and are its first leaders.

    Honest leaders: 5 n - i. Each committee takes a round until its members are told, and three to agree. With b > 0
    silent leaders in a row, members wait V, 2 V, ..., 2^(b-1) V for them, and the request for the next leader takes one
    more round: n ((2^b - 1) V + 1) are added. So one faulty member in each committee holds a payment up for n (V + 1).
    """
    waits = ((2 ** whole("faulty", faulty) - 1) * finite("timeout", timeout, 0) + 1) * (faulty > 0)
    return 5 * whole("n", n, 1) - whole("hop", hop, 1) + n * waits
