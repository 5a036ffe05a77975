"""TODO"""

import platform
from collections.abc import Callable

import numpy as np
import torch

import swarmbook
from swarmbook.config import NUMERICS, RunConfig
from swarmbook.data import batches, tokenization
from swarmbook.data import batches as batches_module
from swarmbook.training.adam import schedule
from swarmbook.training.stacked_stages import StackedStages


def batches_of(run: RunConfig, tokens: batches_module.Tokens) -> batches.Batches | batches.Shards:
    """What a run trains on; `tokens` are those of all its domains."""
    per_step = run.replicas, run.microbatches, run.batch
    if run.shards == "mixed":
        return batches.Batches(tokens, run.sequence, per_step, run.seeds("batches"))
    domains = run.data.split("+")
    limit = run.data_limit and run.data_limit // len(domains)
    sources = [tokenization.tokens(domain, "train", run.tokenizer, limit) for domain in domains]
    return batches.Shards(sources, run.sequence, per_step, run.seeds("batches"))


def held_out_of(run: RunConfig, domain: str) -> np.ndarray:
    """The held-out sequences [1, N, T + 1] of a domain."""
    limit = run.data_limit and run.held_out * run.sequence + 1  # an endless source: no more than needed
    tokens = tokenization.tokens(domain, "validation", run.tokenizer, limit)
    return batches.held_out(tokens, run.sequence, run.held_out)[None]


def weight_seeds(run: RunConfig) -> list[int]:
    """One for each replica: what its initial weights are drawn with."""
    starts = [0 if run.common_start else r for r in range(run.replicas)]
    return [int(run.seeds("weights", r).generate_state(1)[0]) for r in starts]


def rate_of(run: RunConfig) -> Callable[[int], float]:
    """A run's learning rate at each step, counted from 0."""
    return schedule(run.schedule, run.lr, run.warmup, run.schedule_steps or run.steps, run.lr_floor)


def versions(fleet: StackedStages) -> dict:
    """Of what computes, and on what: the part of the provenance that does not depend on how a run is shared out."""
    return {
        "swarmbook": swarmbook.__version__,
        "numerics": NUMERICS,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": _device_name(fleet.device),
        "threads": torch.get_num_threads(),
        "compiled": bool(fleet.compiled),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})"
