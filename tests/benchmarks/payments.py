"""How many events and payments a second, beside a bare loop over a heap, and beside simpy.

    python tests/benchmarks/payments.py           # rates, a minute or two on one core
    python tests/benchmarks/payments.py against FOLDER   # rates beside those of another build, a checkout of it
    python tests/benchmarks/payments.py signed    # payments with real signatures and point locks, and their floor
    python tests/benchmarks/payments.py scale     # 100,000 payments over 10,000 channels: success, time, memory
    python tests/benchmarks/payments.py scale 20000

All rates are per second of CPU time, measured in turn over `ROUNDS` rounds, so that a busy machine disturbs all
alike; the median counts. The bare loop pops and pushes (time, number, node, sender, message) and calls one empty
method an event; simpy delivers the same number of messages with a timeout and a callback each. Signatures are mock.
It is a benchmark, not a test: it asserts nothing.

With real signatures the floor is what cryptography takes for the same signatures, verifications (Ed25519) and
multiplications of a point (secp256k1), one by one; its share of all CPU time says how near the simulation is to it.

At scale, 100 payments a message delay go over three hops of a ring in which every party has eight channels: a channel
is locked for a third of the time, so that payments wait for each other. SyncPCN's bound delta is ten message delays,
which leaves them the time; a third run, of a tenth of the payments, shows what becomes of them when messages really
take delta: a hop is locked too late, and the payment fails. "too late" and "too little" count such payments, and those
for which a channel had too few coins. Each run has a process of its own, with Python's cyclic collector off, since
everything lives to the end.
"""

import gc
import multiprocessing
import re
import resource
import statistics
import subprocess
import sys
import time
from heapq import heappop, heappush
from pathlib import Path

import numpy as np
import simpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from swarmbook.payments import lock_conditions
from swarmbook.payments.encoding import encode
from swarmbook.payments.payment_network import Topology, line
from swarmbook.payments.psyncpcn import PSyncPCN
from swarmbook.payments.signatures import Keys
from swarmbook.payments.syncpcn import SyncPCN, Timing

ROUNDS = 5
EVENTS = 200_000
CAUSES = "too late", "too little"
PROTOCOLS = {
    "SyncPCN": (SyncPCN, {}),
    "PSyncPCN": (PSyncPCN, {"ordering": "none"}),
    "PSyncPCN, payer": (PSyncPCN, {"ordering": "payer"}),
    "PSyncPCN, agreed": (PSyncPCN, {"ordering": "agreed"}),
}


class Empty:
    def receive(self, sender, message):
        pass


def bare() -> float:
    node, heap, number = Empty(), [], 0
    for number in range(100):
        heappush(heap, (0.0, number, node, node, None))
    start = time.process_time()
    for _ in range(EVENTS):
        now, _, to, sender, message = heappop(heap)
        to.receive(sender, message)
        number += 1
        heappush(heap, (now + 1.0, number, to, sender, message))
    return EVENTS / (time.process_time() - start)


def with_simpy() -> float:
    environment, node = simpy.Environment(), Empty()
    left = EVENTS

    def arrive(event):
        nonlocal left
        node.receive(None, event)
        if left:
            left -= 1
            environment.timeout(1.0).callbacks.append(arrive)

    for _ in range(100):
        environment.timeout(1.0).callbacks.append(arrive)
    start = time.process_time()
    environment.run()
    return EVENTS / (time.process_time() - start)


def protocol(kind, more: dict) -> tuple[float, float]:
    """Events and payments a second: one payment after the other over three hops, f = 1."""
    world = kind(line(3, 1, 10**6), **more)
    count = 1000
    for k in range(count):
        world.pay(["u0", "u1", "u2", "u3"], 1, at=20.0 * k)
    start = time.process_time()
    world.run()
    used = time.process_time() - start
    return world.sim.events / used, count / used


def used(call, times: int) -> float:
    """CPU seconds of one of so many calls."""
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times


def signed(kind, more: dict, mode: str, count: int = 30) -> tuple[float, float]:
    """Payments a second with real signatures, and the share of the time that the signatures alone take."""
    key = Ed25519PrivateKey.generate()
    body = encode(("ack", 0, 1, bytes(32)))
    signature, public = key.sign(body), key.public_key()
    keys = Keys(mode)
    world = kind(line(3, 1, 10**6), keys=keys, **more)
    for k in range(count):
        world.pay(["u0", "u1", "u2", "u3"], 1, at=20.0 * k)
    lock_conditions._multiplied.cache_clear()
    run = used(world.run, 1)
    points = lock_conditions._multiplied.cache_info().misses
    floor = keys.signed * used(lambda: key.sign(body), 200) + keys.checked * used(
        lambda: public.verify(signature, body), 200
    )
    floor += points * used(lambda: lock_conditions._multiplied.__wrapped__(12345), 50)
    return count / run, floor / run


def scale(name: str, kind, settings: dict, count: int) -> None:
    gc.disable()
    rng = np.random.default_rng(0)
    parties = 2_500
    ring = [(i, (i + step) % parties) for i in range(parties) for step in (1, 2, 3, 4)]
    world = kind(Topology(tuple((f"p{a}", f"p{b}", 10**6, 10**6) for a, b in ring)), **settings)
    start = time.process_time()
    for k in range(count):
        a, steps = int(rng.integers(parties)), rng.integers(1, 5, 3)
        path = [a, *((a + np.cumsum(steps)) % parties).tolist()]
        world.pay([f"p{i}" for i in path], 1, at=k * 0.01)
    world.run()
    used = time.process_time() - start
    waits = [payment.time("receipt") for payment in world.payments if "receipt" in payment.times]
    failed = [sum(why in p.times and "receipt" not in p.times for p in world.payments) for why in CAUSES]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    columns = [f"{value:,}" for value in (count, len(waits), *failed, world.sim.events)]
    columns += [f"{statistics.median(waits):.0f}", f"{np.quantile(waits, 0.95):.0f}"]
    print(f"{name:22}", *(f"{text:>10}" for text in [*columns, f"{used:.0f}", f"{memory:.2f}"]), flush=True)


def against(folder: str) -> None:
    """Rates of both builds, each by its own script, in turn; and this build's over the other's, pair by pair."""
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(ROUNDS):
        for root in (folder, Path(__file__).parents[2]):
            command = [sys.executable, Path(root, "tests/benchmarks/payments.py")]
            said = subprocess.run(command, env={"PYTHONPATH": str(Path(root, "lib"))}, capture_output=True, text=True)
            for name, rate in re.findall(r"^(.+?) +([\d,]+)   \(", said.stdout, re.MULTILINE):
                found.setdefault(name, {}).setdefault(str(root), []).append(float(rate.replace(",", "")))
    for name, rates in found.items():
        columns = [f"{statistics.median(values):12,.0f}" for values in rates.values()]
        if len(rates) == 2:
            ratios = [after / before for before, after in zip(*rates.values(), strict=True)]
            columns.append(f"{statistics.median(ratios):6.2f} x")
        print(f"{name:28}", *columns)


def main() -> None:
    if sys.argv[1:2] == ["against"]:
        against(sys.argv[2])
        return
    if sys.argv[1:2] == ["scale"]:
        count = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
        heads = ["payments", "succeed", *CAUSES, "events", "median", "95 %", "CPU s", "GiB"]
        print(f"{'over 10,000 channels':22}", *(f"{head:>10}" for head in heads))
        for run in (
            ("PSyncPCN", PSyncPCN, {"ordering": "none"}, count),
            ("SyncPCN, delta = 10", SyncPCN, {"timing": Timing(10.0)}, count),
            ("SyncPCN, delta = 1", SyncPCN, {}, count // 10),
        ):
            process = multiprocessing.get_context("spawn").Process(target=scale, args=run)
            process.start()
            process.join()
        return
    if sys.argv[1:2] == ["signed"]:
        for mode in ("real", "cached"):
            for kind, more in ((SyncPCN, {"lock": "point"}), (PSyncPCN, {"ordering": "none"})):
                made = [signed(kind, more, mode) for _ in range(ROUNDS)]
                rate, share = map(statistics.median, zip(*made, strict=True))
                print(f"{kind.name}, {mode:8} {rate:8.1f} payments/s, {share:.2f} of the time is the library's")
        return
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        rates.setdefault("bare heap, events/s", []).append(bare())
        rates.setdefault("simpy, events/s", []).append(with_simpy())
        for name, (kind, more) in PROTOCOLS.items():
            events, payments = protocol(kind, more)
            rates.setdefault(f"{name}, events/s", []).append(events)
            rates.setdefault(f"{name}, payments/s", []).append(payments)
    for name, values in rates.items():
        print(f"{name:28} {statistics.median(values):12,.0f}   ({min(values):,.0f} to {max(values):,.0f})")


if __name__ == "__main__":
    main()
