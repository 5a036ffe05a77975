"""Which runs share a Fleet, and what of it fits into the memory of the device.

Serves: `swarmbook.runs.run`.
"""

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from swarmbook.config import RunConfig
from swarmbook.data import tokenization
from swarmbook.methods.model_size import Shape
from swarmbook.methods.optimizers import OPTIMIZERS
from swarmbook.methods.sync import SYNCS
from swarmbook.training.device import device_of
from swarmbook.training.llama import ATTENTION_KEPT

# What may differ within a pack:
PACKED = {
    "seed",
    "route",
    "recovery",
    "failure_rate",
    "failing",
    "lost_stages",
    "moments",
    "lr_boost",
    "boost_half_life",
    "slow_weights",
    "downtime",
    "away",
    "detour",
}
PACKED |= {"keep_every", "evaluate_on", "measurements", "start", "common_start", "sync", "sync_every", "outer_lr"}
PACKED |= {"outer_momentum", "consensus", "group", "matching", "density", "fragments", "delay", "mixing"}
PACKED |= {"absent", "rejoin", "shards", "storage", "paths", "visits", "swaps", "swap_lag", "reach", "keep_first"}
PACKED |= {"data", "branch"}
COMPILE_FLOPS = 1e16  # about two minutes of eager training on CUDA, which a compilation repays


def packs(configs: Sequence[RunConfig], device: str = "auto") -> Iterator[list[RunConfig]]:
    """Split runs into packs, which can share a Fleet and fit into the device's memory together.

    Runs of a pack differ only in the fields `PACKED`. On CUDA they also have one route: where routes differ, each
    position has work of several sizes, which no compiled kernel fits.
    """
    alike: dict[str, list[RunConfig]] = {}
    free = PACKED - {"route", "away", "downtime", "detour"} if device_of(device).type == "cuda" else PACKED
    for config in configs:
        begins = config.start.steps if config.start else 0
        alike.setdefault(f"{begins} {config.model_dump_json(exclude=free)}", []).append(config)
    for group in alike.values():
        size = max(1, int(_memory(device) // max(sum(_bytes(config, device)) for config in group)))
        parts = -(-len(group) // size)
        yield from (group[i::parts] for i in range(parts))


def expected_flops(pack: Sequence[RunConfig], shape: Shape) -> float:
    """FLOPs of all steps of a pack, by the rule of thumb of 6 per parameter and token."""
    return 6.0 * shape.parameters * pack[0].tokens_per_step * pack[0].steps * len(pack)


def _bytes(config: RunConfig, device: str) -> tuple[float, float]:
    """Bytes that one run takes for weights, gradients and buffers, and for what the forward pass keeps of all
    microbatches.
    """
    vocabulary = tokenization.vocabulary(config.tokenizer)
    shape = config.shape(vocabulary)
    kept = config.sequence <= ATTENTION_KEPT[device_of(device).type]
    attention = config.heads * config.sequence if kept else 0
    per_token = shape.layers * (7 * config.width + 2 * config.hidden + attention) + 4 * config.width
    method, buffers = SYNCS[config.sync], OPTIMIZERS[config.optimizer].buffers
    outer = 8.0 + 4.0 * len(method.buffers) if method else 0.0  # slow weights, what is on its way, and buffers
    weights = (16.0 + 4.0 * len(buffers) + outer) * config.replicas * shape.parameters
    return weights, 4.0 * config.tokens_per_step * per_token


def fitting(pack: Sequence[RunConfig], device: str) -> tuple[int, bool]:
    """How many microbatches fit beside the pack's weights with their activations, and whether not even one does."""
    weights, activations = np.sum([_bytes(config, device) for config in pack], axis=0)
    fitting = int((_memory(device) - weights) / activations * pack[0].microbatches)
    return min(max(fitting, 1), pack[0].microbatches), fitting < 1


def _memory(device: str) -> float:
    """Bytes that a pack may use: four fifths of what is free on a GPU, a quarter of the machine's memory on a CPU."""
    if device_of(device).type == "cuda":
        return 0.8 * torch.cuda.mem_get_info(device_of(device))[0]
    return 0.25 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
