"""What a configuration accepts, and what changes its key."""

import subprocess
import sys

import numpy as np
import pytest

from swarmbook.config import RunConfig, choose, grid, run_config
from swarmbook.errors import ConfigError
from swarmbook.recovery import RULES

BASE = {"data": "stories_toy", "steps": 20, "evaluate_every": 10}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stage": 6}, "unknown field 'stage': did you mean 'stages'"),
        ({"route": "swaped ends"}, "unknown route 'swaped ends': did you mean 'swapped ends'"),
        ({"recovery": "chekfree"}, "unknown recovery 'chekfree'"),
        ({"failure_rate": 1.5, "recovery": "CheckFree"}, "failure_rate=1.5"),
        ({"failure_rate": 0.1}, "failure_rate=0.1 needs a recovery"),
        ({"heads": 3}, "width=64 must be an even multiple of heads=3"),
        ({"route": "swapped ends", "microbatches": 3}, "microbatches=3"),
        ({"evaluate_every": 15}, "evaluate_every=15 must be a multiple of log_every=10"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"steps": 0}, "steps=0"),
        ({"probes": ["loss jumps"]}, "probes.0='loss jumps'"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ConfigError) as error:
        run_config(**{**BASE, **fields})
    assert message in str(error.value)


def test_a_missing_field_is_named():
    with pytest.raises(ConfigError, match="data is missing"):
        run_config(steps=10)


def test_grid_is_the_product_of_its_axes():
    configs = grid(BASE, route=["in order", "swapped ends"], seed=range(3))
    assert [(c.route, c.seed) for c in configs] == [
        (route, seed) for route in ("in order", "swapped ends") for seed in range(3)
    ]
    with pytest.raises(ConfigError, match=r"write route=\['in order'\]"):
        grid(BASE, route="in order")
    with pytest.raises(ConfigError, match="seed=3 must be a list"):
        grid(BASE, seed=3)


def test_every_field_changes_the_key():
    base = run_config(**BASE)
    other = {
        "data": "fiction_austen", "data_limit": 10_000, "stages": 7, "layers_per_stage": 2, "width": 32, "heads": 2,
        "hidden": 32, "sequence": 64, "replicas": 2, "microbatches": 2, "batch": 4, "steps": 30, "lr": 2e-3,
        "schedule": "cosine", "warmup": 5, "clip": 0.5, "precision": "bf16", "route": "swapped ends",
        "recovery": "random", "lr_boost": 1.2, "log_every": 5, "evaluate_every": 20, "held_out": 8,
        "probes": ("loss jump",), "seed": 1,
    }  # fmt: skip
    keys = {run_config(**{**BASE, name: value}).key for name, value in other.items()}
    assert len(keys | {base.key}) == len(other) + 1
    assert set(RunConfig.model_fields) - set(other) == {"tokenizer", "failure_rate"}
    assert run_config(**BASE).key == base.key
    assert base.model_copy(update={"failure_rate": 0.1}).key != base.key


def test_editing_ones_own_rule_changes_the_key(monkeypatch):
    def key(rule):
        monkeypatch.setitem(RULES, "mine", rule)
        return run_config(**BASE, recovery="mine").key

    def half(fleet, lost, norms):
        return 0.5

    def third(fleet, lost, norms):
        return 1 / 3

    def half_again(fleet, lost, norms):
        return 0.5

    assert key(half) != key(third)
    assert key(half) == key(half_again)


def test_purposes_and_seeds_draw_different_numbers():
    def draws(seed, *purpose):
        return run_config(**BASE, seed=seed).rng(*purpose).random(3)

    a = draws(0, "failures")
    assert np.array_equal(a, draws(0, "failures"))
    for other in (draws(1, "failures"), draws(0, "batches"), draws(0, "failures", 0)):
        assert not np.array_equal(a, other)


def test_choose_names_the_profiles():
    assert choose("cpu", smoke=1, cpu=2) == 2
    with pytest.raises(ConfigError, match="unknown profile 'gpuu': did you mean 'gpu'"):
        choose("gpuu", cpu=1, gpu=2)


def test_reading_recorded_runs_needs_no_torch():
    code = "import sys, swarmbook.runs, swarmbook.claims; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
