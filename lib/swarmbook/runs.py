"""Runs by configuration: from the record where they are there, trained now where they are not.

    runs = run(grid(base, route=["in order", "swapped ends"], seed=range(3)))
    runs.table("validation loss")

Serves: every figure and table that stands on training.
"""

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from swarmbook.config import RunConfig, run_config
from swarmbook.errors import ConfigError, LostProgress, StoreError, TrainingError
from swarmbook.locations import recorded_folders
from swarmbook.records.atomic_files import read
from swarmbook.records.computed import note
from swarmbook.records.store import Store, open_store
from swarmbook.results import Runs

PATIENCE = 3  # times that a run may lose its work in progress before that is an error


def run(
    configs: Sequence[RunConfig],
    recorded: str | Path | None = None,
    device: str = "auto",
    show: bool = True,
    store: Store | None = None,
    keep: bool = False,
) -> Runs:
    """The results of all configurations. Those that are neither recorded nor stored are trained now, in packs.

    Interrupted training resumes from its last checkpoint, and runs that another process is training are awaited. A run
    that begins with the final state of another (`start`, `branch`) has that trained first if its final state is not in
    the store.
    recorded: a folder of recorded runs; by default those of all papers, wherever the notebook lies.
    device: as torch names it, or "auto" for CUDA where there is one.
    show: whether progress is shown.
    store: by default the user's, of `open_store`.
    keep: whether final states are stored of runs with which no other begins, too.
    Raises TrainingError for runs that diverge, after all others are finished and stored; StoreError if a result cannot
    be written.
    """
    store = store or open_store(recorded_folders(recorded))
    keys = [config.key for config in configs]
    by_key = dict(zip(keys, configs, strict=True))
    lost: Counter[str] = Counter()
    while None in (found := {key: store.get(key) for key in by_key}).values():
        missing = [key for key in by_key if found[key] is None]
        _keep_states({parent for key in missing for parent in by_key[key].parents}, store, device, show)
        left = {key: by_key[key] for key in missing if store.get(key) is None}
        if left and not _train(left, by_key, store, device, show, keep, lost):
            store.wait(left)
    note(by_key)
    return Runs(configs, [found[key] for key in keys])


def _train(
    missing: dict[str, RunConfig],
    by_key: dict,
    store: Store,
    device: str,
    show: bool,
    keep: bool,
    lost: Counter[str],
) -> bool:
    """Train what nobody else is training, interrupted packs first; returns False if there was nothing to train.

    lost: how often each run has lost its work in progress, which counts as trained here: the caller looks again who
    trains it, up to `PATIENCE` times.
    """
    from swarmbook.training import logging_plan
    from swarmbook.training.packing import packs
    from swarmbook.training.trainer import train

    begun = [keys for keys in store.packs() if set(keys) <= set(by_key)]
    rest = {config: key for key, config in missing.items() if not any(key in keys for keys in begun)}
    any_trained, diverged = False, []
    for keys in begun + [[rest[config] for config in pack] for pack in packs(list(rest), device)]:
        starts = _final_states({parent for key in keys for parent in by_key[key].parents}, store, device, show)
        with store.claim(keys) as mine:
            keys = sorted(keys if keys in store.packs(held=mine) else mine)  # the order in which a pack is resumed
            if not mine:
                continue
            pack, progress = [by_key[key] for key in keys], store.progress(keys)
            _check_unchanged(keys, pack)
            try:
                result = train(pack, progress, device, show, starts)
                metrics, provenance = progress.metrics(), result.provenance()
            except LostProgress as loss:
                lost.update(keys)
                if max(lost[key] for key in keys) > PATIENCE:
                    raise
                warnings.warn(f"{loss}; going on from the last good checkpoint, or anew", stacklevel=3)
                any_trained = True
                continue
            for i in result.healthy:
                rows = metrics[metrics["run"] == i].drop(columns="run").reset_index(drop=True)
                for name in ("metric", "label"):
                    rows[name] = rows[name].cat.remove_unused_categories()
                try:
                    logging_plan.check(pack[i], rows)
                except StoreError:
                    progress.discard()
                    raise
                if keep:
                    store.put_state(keys[i], result.state(i))
                store.put(keys[i], pack[i].model_dump(mode="json"), rows, provenance)
            progress.discard()
            any_trained = True
            diverged += result.diverged.values()
    if diverged:
        raise TrainingError("\n".join(diverged))
    return any_trained


def _check_unchanged(keys: Sequence[str], pack: Sequence[RunConfig]) -> None:
    """ConfigError if data, tokenizer or the user's own rules are others than when the keys were made."""
    for key, config in zip(keys, pack, strict=True):
        if config.key != key:
            raise ConfigError(
                f"run {key} is not trained: its data, its tokenizer or a rule of your own was changed since this was "
                f"started, and with these its key is {config.key}. Start it again, which takes the new ones"
            )


def final_states(configs: Iterable[RunConfig], device: str = "auto", show: bool = True) -> dict[str, dict]:
    """The states in which runs ended, by key, as `Pack.state` gives them; what is not in the store is trained now."""
    return _final_states(set(configs), open_store(), device, show)


def _final_states(configs: set[RunConfig], store: Store, device: str, show: bool) -> dict[str, dict]:
    """The states in which runs ended, by key. What is not in the store is trained, whether recorded or not."""
    _keep_states(configs, store, device, show)
    return {key: store.state(key) for key in (config.key for config in configs)}


def _keep_states(configs: set[RunConfig], store: Store, device: str, show: bool) -> None:
    """Train the runs whose final states are not in the store: ancestors first, each generation in packs."""
    keeping, key_of_run, there = store.keeping(), cache(lambda config: config.key), set()
    lost: Counter[str] = Counter()
    while True:
        missing, rest = {}, list(configs)
        while rest:
            config = rest.pop()
            key = key_of_run(config)
            if key in there or key in missing:
                continue
            if keeping.get(key) is not None:
                there.add(key)
                continue
            missing[key] = config
            rest += config.parents
        if not missing:
            return
        ready = {k: c for k, c in missing.items() if all(key_of_run(parent) in there for parent in c.parents)}
        if not _train(ready, missing, keeping, device, show, True, lost):
            keeping.wait(ready)


def config_of(name: str) -> RunConfig:
    """The configuration in a JSON file, or that of the recorded or stored run of this key; ConfigError for neither."""
    path = Path(name)
    if path.suffix == ".json" or path.is_file():
        try:
            return run_config(**json.loads(read(path)))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{name} holds no configuration of a run: {error}") from error
    try:
        record = open_store(recorded_folders()).get(name)
    except ValueError:
        record = None
    if record is None:
        raise ConfigError(f"{name!r} is neither a JSON file nor the key of a run that is recorded or in the store")
    if "lost_processes" in record.config:  # as `swarmbook.distributed` writes it
        raise ConfigError(
            f"run {name} lost processes on its way, which no configuration repeats: give the key of the undisturbed "
            f"run, {record.provenance['undisturbed']}"
        )
    return run_config(**record.config)
