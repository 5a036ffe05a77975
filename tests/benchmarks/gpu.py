"""How much of a GPU training uses, what stacking replicas saves, and what both take in memory; needs one CUDA device.

    python tests/benchmarks/gpu.py                  # all, three to four minutes on an H100
    python tests/benchmarks/gpu.py models           # the models of CheckFree's table 4, at its context lengths
    python tests/benchmarks/gpu.py fleets           # R replicas of a model of 10M weights in one Fleet

A step is forward, backward, clipping and Adam, in bf16 over fp32 weights, on fresh tokens from the CPU; its time is
the median of several between CUDA events. FLOPs are those of matmuls and causal attention (`model_size.flops`, three
times for forward and backward), set against the fastest matmul of this card, measured here, and against a datasheet's
989 TFLOP/s (dense bf16, H100 and H200 SXM).

Peers in the same run: transformers' LLaMA under autocast, each decoder layer compiled, with torch's fused Adam and
`clip_grad_norm_`, one model after the other; and R of them stacked by `torch.func`. "one after another" is R Fleets of
one replica each. It is a benchmark, not a test: it asserts nothing.
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F
from llama import llama

from swarmbook.methods.model_size import Shape, flops
from swarmbook.training.fleet import Fleet
from swarmbook.training.inner_optimizer import InnerOptimizer

DATASHEET = 989e12
MODELS = {  # as printed: shape (vocabulary of LLaMA 2), and M, B, T of a process, as released
    "124M": (Shape(4, 3, 512, 8, 2048, 32_000), 4, 64, 512),
    "500M": (Shape(6, 4, 1024, 16, 4096, 32_000), 4, 16, 1024),
    "1.5B": (Shape(6, 4, 2048, 16, 8192, 32_000), 8, 2, 4096),
}
TEN = Shape(6, 1, 256, 4, 1024, 8192)
FLEETS = (1, 4, 16, 64)
B, T = 4, 256


def milliseconds(step, *args, rounds: int = 10) -> float:
    """Median time of a step, in ms."""
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step(*args)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def matmul_rate() -> float:
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    return 2 * 8192**3 / (1e-3 * milliseconds(torch.mm, a, b))


def ours(shape: Shape, replicas: int = 1, **options):
    """Microbatches follow one another."""
    fleet = Fleet(shape, range(replicas), device="cuda", precision="bf16", **options)
    adam = InnerOptimizer(fleet, 1e-3)

    def step(tokens):
        fleet.gradients(tokens, at_once=1)
        fleet.clip(1.0)
        adam.step()

    return step


def model_of(shape: Shape, length: int):
    with torch.device("cuda"):
        return llama(shape, length, use_cache=False)


def peer(shape: Shape, length: int):
    model = model_of(shape, length)
    for layer in model.model.layers:
        layer.compile()
    adam = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def step(tokens):
        for own in tokens[0].cuda(non_blocking=True):
            with torch.autocast("cuda", torch.bfloat16):
                logits = model(input_ids=own[:, :-1]).logits
            loss = F.cross_entropy(logits.flatten(0, 1), own[:, 1:].flatten())
            (loss / len(tokens[0])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()

    return step


def ensemble(shape: Shape, length: int, replicas: int):
    """R models stacked by torch.func, gradients by vmap."""
    from torch.func import functional_call, grad, stack_module_state, vmap

    models = [model_of(shape, length) for _ in range(replicas)]
    base = models[0]
    params, buffers = stack_module_state(models)
    del models
    adam = torch.optim.Adam(params.values(), 1e-3, fused=True)

    def loss(params, buffers, own):
        with torch.autocast("cuda", torch.bfloat16):
            logits = functional_call(base, (params, buffers), (own[:, :-1],)).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), own[:, 1:].flatten())

    every = vmap(grad(loss), in_dims=(0, 0, 0))

    def step(tokens):
        found = every(params, buffers, tokens.flatten(1, 2).cuda(non_blocking=True))
        norm = sum(g.square().flatten(1).sum(1) for g in found.values()).sqrt()
        factor = (1.0 / (norm + 1e-6)).clamp(max=1.0)
        for name, g in found.items():
            params[name].grad = g * factor.view(-1, *[1] * (g.dim() - 1))
        adam.step()

    return step


def measured(make, *args, tokens, first: int = 5, rounds: int = 10) -> dict:
    """Time and memory of a step, and how long it took to build and run the `first` steps; or why it does not run."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    try:
        step = make(*args)
        for _ in range(first):
            step(tokens)
        torch.cuda.synchronize()
        ready = time.perf_counter() - begin
        return {
            "ms": milliseconds(step, tokens, rounds=rounds),
            "GiB": torch.cuda.max_memory_allocated() / 2**30,
            "first s": ready,
        }
    except Exception as error:  # a peer that does not run is a result
        print(f"  {make.__name__} does not run: {type(error).__name__}: {str(error)[:300]}", flush=True)
        return {"ms": float("nan"), "GiB": float("nan"), "first s": float("nan")}


def print_row(cells, widths=(24, *[12] * 11)) -> None:
    print("".join(str(cell).rjust(width) for cell, width in zip(cells, widths, strict=False)), flush=True)


def models(rate: float) -> None:
    heads = ("model", "parameters", "tokens", "step ms", "tokens/s", "of matmul", "of datasheet", "GiB", "first s")
    print_row((*heads, "peer ms", "peer GiB", "peer / ours"))
    for name, (shape, M, B, T) in MODELS.items():
        tokens = torch.randint(shape.vocabulary, (1, M, B, T + 1)).pin_memory()
        mine = measured(ours, shape, tokens=tokens, first=2, rounds=4)
        theirs = measured(peer, shape, T, tokens=tokens, first=2, rounds=4)
        count = M * B * T
        reached = 3 * flops(shape, count, T) / (1e-3 * mine["ms"])
        print_row(
            (
                f"{name}, T = {T}",
                f"{shape.parameters / 1e6:.0f}M",
                count,
                f"{mine['ms']:.1f}",
                f"{1e3 * count / mine['ms']:,.0f}",
                f"{reached / rate:.1%}",
                f"{reached / DATASHEET:.1%}",
                f"{mine['GiB']:.1f}",
                f"{mine['first s']:.0f}",
                f"{theirs['ms']:.1f}",
                f"{theirs['GiB']:.1f}",
                f"{theirs['ms'] / mine['ms']:.2f}",
            )
        )


def fleets(rate: float) -> None:
    print(f"\n{TEN.parameters / 1e6:.1f}M parameters, {B} sequences of {T} tokens a replica and step")
    heads = ("replicas", "step ms", "one by one", "gain", "of matmul", "MiB/replica", "peer loop", "gain")
    print_row((*heads, "torch.func", "gain"))
    alone = slow = None
    for replicas in FLEETS:
        tokens = torch.randint(TEN.vocabulary, (replicas, 1, B, T + 1)).pin_memory()
        mine = measured(ours, TEN, replicas, tokens=tokens)
        alone = alone or mine["ms"]
        slow = slow or measured(peer, TEN, T, tokens=tokens)["ms"]
        stacked = measured(ensemble, TEN, T, replicas, tokens=tokens) if replicas <= 16 else {"ms": float("nan")}
        reached = 3 * replicas * flops(TEN, B * T, T) / (1e-3 * mine["ms"])
        print_row(
            (
                replicas,
                f"{mine['ms']:.2f}",
                f"{replicas * alone:.1f}",
                f"{replicas * alone / mine['ms']:.1f}",
                f"{reached / rate:.1%}",
                f"{1024 * mine['GiB'] / replicas:.0f}",
                f"{replicas * slow:.1f}",
                f"{replicas * slow / mine['ms']:.1f}",
                f"{stacked['ms']:.1f}",
                f"{stacked['ms'] / mine['ms']:.1f}",
            )
        )


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device here: this benchmark needs one")
    rate = matmul_rate()
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}: a matmul of 8192 x 8192 reaches {rate / 1e12:.0f} TFLOP/s (bf16)\n")
    parts = {"models": models, "fleets": fleets}
    for part in sys.argv[1:] or parts:
        parts[part](rate)


if __name__ == "__main__":
    main()
