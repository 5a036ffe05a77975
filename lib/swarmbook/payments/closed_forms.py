"""What a payment costs, in closed form: messages, delays, bytes and time for which coins are locked.

n is the number of hops, f the most faulty members of a committee, m = 3 f + 1 its size. Messages are point to point,
counted when sent, without those to oneself. A delay is one message after another. The forms are of the protocols as
they stand in this package. Its tests and notebook find the same numbers by counting; the paper's text confirms none of
them.

Serves: the cost table and figures, the longest lock of a hop; claims S4 and S5.
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


def sync_bytes(n: int, f: int) -> int:
    """Bytes of a successful SyncPCN payment: setup, and two updates a hop.

    PROPOSE and COSIGN carry a state and a signature; ANNOUNCE two signatures; ACK one.
    """
    m = size(f)
    lock = SIZES["pid"] + SIZES["amount"] + SIZES["point"] + SIZES["time"]
    propose = _bytes("seq", "hash", "amount", "amount", "hash", "signature", extra=lock)
    cosign = _bytes("seq", "hash", "signature")
    announce = _bytes("hash", "seq", "hash", "signature", "signature")
    ack = _bytes("seq", "hash", "member", "signature")
    setup = _bytes("scalar", extra=2 * lock)
    return n * setup + 2 * n * (propose + cosign + 2 * m * (announce + ack)) + n * SIZES["scalar"]


def psync_bytes(n: int, f: int) -> int:
    """Bytes of a successful PSyncPCN V1 payment: an ORDER of 150 + 16 n bytes, in it and in every share."""
    m = size(f)
    order = 150 + 16 * n
    share = _bytes("seq", "pid", "hash", "member", "signature")
    return m * (SIZES["header"] + order) + 2 * (n - 1) * m * m * (share + order) + 2 * n * m * share


def lock_bound(n: int, delta: float) -> float:
    """Latest time at which hop 1 of SyncPCN is decided, after the start: T_1 + 4 delta = (7 n + 3) delta."""
    return (7 * whole("n", n, 1) + 3) * finite("delta", delta, 0)
