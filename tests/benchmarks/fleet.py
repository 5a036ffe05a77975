"""How much faster a Fleet trains than a loop over transformers' LLaMA, and what limits it.

    python tests/benchmarks/fleet.py                    # all cases, about two minutes on one idle core
    python tests/benchmarks/fleet.py a --against LIB    # one case, beside another build, whose `lib` is LIB

The peer trains R separate `LlamaForCausalLM`, one after the other, each with torch's fused Adam and
`clip_grad_norm_`. Both take the same tokens in fp32 on one thread, in turn; a time is the median CPU time of
a step over `ROUNDS` rounds, so that a busy machine disturbs both alike. "matmul" and "attention" are those
operations of one step on their own; "rate" is the FLOPs of a step over its time, as a share of the fastest
matmul measured on this machine; "bytes/parameter" is what training adds to the size of an eager process.
"gain" is the time of the other build over ours: it trains in a process of its own, in turn with ours, and compiles
where it can. Needs the test extras; it is a benchmark, not a test: it asserts nothing.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from llama import llama

from swarmbook.methods.model_size import Shape
from swarmbook.training.fleet import Fleet
from swarmbook.training.inner_optimizer import InnerOptimizer

ROUNDS = 9
CASES = {  # R, shape, M, B, T, goal
    "a": (8, Shape(6, 1, 64, 4, 256, 512), 1, 4, 64, 2.1),
    "b": (16, Shape(4, 1, 64, 4, 256, 512), 1, 2, 64, 2.8),
    "c": (1, Shape(8, 1, 128, 4, 512, 2048), 1, 16, 128, 1.3),
}


def peer(replicas, shape, length):
    """A step over separate models of transformers."""
    models = [llama(shape, length) for _ in range(replicas)]
    optimizers = [torch.optim.Adam(m.parameters(), 1e-3, fused=True) for m in models]

    def step(tokens):
        for model, optimizer, own in zip(models, optimizers, tokens.flatten(1, 2), strict=True):
            logits = model(input_ids=own[:, :-1]).logits
            F.cross_entropy(logits.flatten(0, 1), own[:, 1:].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return step


def ours(replicas, shape):
    fleet = Fleet(shape, range(replicas), device="cpu")
    adam = InnerOptimizer(fleet, 1e-3)

    def step(tokens, cells=None):
        fleet.gradients(tokens, cells)
        fleet.clip(1.0)
        adam.step()

    return step


def cpu_time(work, *args):
    start = time.process_time()
    work(*args)
    return time.process_time() - start


def alone(work, rounds=15):
    work()
    return statistics.median(cpu_time(work) for _ in range(rounds))


def matmuls(replicas, shape, tokens):
    """Seconds of the step's matmuls alone (forward, and two backward each), and their FLOPs."""
    D, H, V = shape.width, shape.hidden, shape.vocabulary
    total = flops = 0.0
    for inner, outer, count in (
        (D, 3 * D, shape.layers),
        (D, D, shape.layers),
        (D, 2 * H, shape.layers),
        (H, D, shape.layers),
        (D, V, 1),
    ):
        x, w, y = (torch.randn(replicas, *s) for s in ((tokens, inner), (inner, outer), (tokens, outer)))
        total += count * alone(lambda x=x, w=w: torch.bmm(x, w))
        total += count * alone(lambda y=y, w=w: torch.bmm(y, w.mT))
        total += count * alone(lambda x=x, y=y: torch.bmm(x.mT, y))
        flops += count * 3 * 2 * replicas * tokens * inner * outer
    return total, flops


def attention(replicas, shape, batch, length):
    """Seconds of the step's fused causal attention alone, forward and backward, and its model FLOPs."""
    size = (replicas * batch, shape.heads, length, shape.head_width)
    q, k, v = (torch.randn(size, requires_grad=True) for _ in range(3))
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    g = torch.randn_like(o)
    forward = alone(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    backward = alone(lambda: torch.autograd.grad(o, (q, k, v), g, retain_graph=True))
    flops = 3 * 2 * replicas * batch * shape.width * length * (length + 1)  # two products over a triangle
    return shape.layers * (forward + backward), shape.layers * flops


def peak_rate():
    """FLOPs a second of a large square matmul."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / min(cpu_time(torch.mm, a, a) for _ in range(9))


def added_memory(name):
    """Bytes that training a case adds to a process of its own, without those of a compiler."""
    output = subprocess.check_output([sys.executable, __file__, name, "--memory"], text=True)
    return int(output.split()[-1])


def print_memory(name):
    replicas, shape, M, B, T, _ = CASES[name]
    tokens = torch.randint(shape.vocabulary, (replicas, M, B, T + 1))
    tiny = ours(1, Shape(1, 1, 8, 2, 8, 16))
    tiny(torch.zeros(1, 1, 1, 5, dtype=torch.long))  # loads what a first step loads
    before = resident("VmRSS")
    step = ours(replicas, shape)
    for _ in range(3):
        step(tokens)
    print(resident("VmHWM") - before)


def resident(field):
    """Bytes; Linux only. (getrusage would count the process that started this one.)"""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def serve(name):
    """Train three steps of a case, then one for each line that is read, and print its CPU time."""
    replicas, shape, M, B, T, _ = CASES[name]
    tokens, step = torch.randint(shape.vocabulary, (replicas, M, B, T + 1)), ours(replicas, shape)
    for _ in range(3):
        step(tokens)
    for _ in sys.stdin:
        print(cpu_time(step, tokens), flush=True)


def other(name, library):
    """A function that gives the CPU time of a step of another build."""
    command, environment = [sys.executable, __file__, name, "--serve"], {**os.environ, "PYTHONPATH": library}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def once():
        process.stdin.write("\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    once()
    return once, process


def compare(name, library):
    """One line of the table."""
    replicas, shape, M, B, T, goal = CASES[name]
    tokens = torch.randint(shape.vocabulary, (replicas, M, B, T + 1))
    start = time.perf_counter()
    fast = ours(replicas, shape)
    fast(tokens)
    first = time.perf_counter() - start
    slow = peer(replicas, shape, T)
    for _ in range(3):
        slow(tokens)
        fast(tokens)
    before, process = other(name, library) if library else (lambda: math.nan, None)
    times = [(cpu_time(slow, tokens), cpu_time(fast, tokens), before()) for _ in range(ROUNDS)]
    if process:
        process.communicate()
    slow, fast, _ = map(statistics.median, zip(*times, strict=True))
    multiply, flops = matmuls(replicas, shape, M * B * T)
    attend, more = attention(replicas, shape, M * B, T)
    count = replicas * M * B * T
    return {
        "case": name,
        "peer us/token": f"{1e6 * slow / count:.1f}",
        "ours us/token": f"{1e6 * fast / count:.1f}",
        "ratio": f"{statistics.median(s / f for s, f, _ in times):.2f}",
        "gain": f"{statistics.median(b / f for _, f, b in times):.2f}",
        "goal": goal,
        "step ms": f"{1e3 * fast:.1f}",
        "matmul ms": f"{1e3 * multiply:.1f}",
        "attention ms": f"{1e3 * attend:.1f}",
        "step / both": f"{fast / (multiply + attend):.2f}",
        "rate": f"{(flops + more) / fast / peak_rate():.0%}",
        "bytes/parameter": f"{added_memory(name) / (replicas * shape.parameters):.1f}",
        "first step s": f"{first:.1f}",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help="of a, b, c; all by default")
    parser.add_argument("--against", metavar="LIB", help="the folder `lib` of another build, to compare with")
    parser.add_argument("--serve", action="store_true", help="train one case, step by step, as lines are read")
    parser.add_argument("--memory", action="store_true", help="only the bytes that training one case adds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        return print_memory(options.cases[0])
    if options.serve:
        return serve(options.cases[0])
    for i, name in enumerate(options.cases):
        row = compare(name, options.against)
        if i == 0:
            print("  ".join(row))
        print("  ".join(str(value).rjust(len(title)) for title, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
