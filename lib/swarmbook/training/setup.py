"""What a run's configuration says of its training: what it trains and is measured on, seeds, and learning rate.

`run` is a `swarmbook.config.RunConfig` everywhere.

Serves: every trained run.
"""

from collections.abc import Callable

import numpy as np

from swarmbook.data import batches, tokenization
from swarmbook.training.learning_rate import schedule


def batches_of(run, tokens: batches.Tokens) -> batches.Batches | batches.Shards:
    """What a run trains on, step by step. tokens: the training tokens of all its domains together."""
    per_step = run.replicas, run.microbatches, run.batch
    if run.shards == "mixed":
        return batches.Batches(tokens, run.sequence, per_step, run.seeds("batches"))
    domains = run.data.split("+")
    limit = run.data_limit and run.data_limit // len(domains)
    sources = [tokenization.tokens(domain, "train", run.tokenizer, limit) for domain in domains]
    return batches.Shards(sources, run.sequence, per_step, run.seeds("batches"))


def held_out_of(run, domain: str) -> np.ndarray:
    """The held-out sequences of a domain, int [1, N, T + 1]. DataError if its text is too short for them."""
    limit = run.data_limit and run.held_out * run.sequence + 1  # an endless source: no more than needed
    tokens = tokenization.tokens(domain, "validation", run.tokenizer, limit)
    return batches.held_out(tokens, run.sequence, run.held_out)[None]


def weight_seeds(run) -> list[int]:
    """The seed of the initial weights of each replica; one for all with `common_start`."""
    starts = [0 if run.common_start else r for r in range(run.replicas)]
    return [int(run.seeds("weights", r).generate_state(1)[0]) for r in starts]


def rate_of(run) -> Callable[[int], float]:
    """A run's learning rate at each step, counted from 0."""
    return schedule(run.schedule, run.lr, run.warmup, run.schedule_steps or run.steps, run.lr_floor)
