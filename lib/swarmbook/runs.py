"""Runs by configuration: from the record where they are there, trained now where they are not.

runs = run(grid(base, route=["in order", "swapped ends"], seed=range(3)))
runs.table("validation loss")
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

import swarmbook
from swarmbook.config import RunConfig
from swarmbook.errors import ConfigError, TrainingError
from swarmbook.store import Record, Store, key_of, open_store


class Runs:
    """Finished runs, in the order of their configurations."""

    def __init__(self, configs: Sequence[RunConfig], records: Sequence[Record]):
        self.configs, self.records = list(configs), list(records)

    def __len__(self) -> int:
        return len(self.configs)

    def __add__(self, other: "Runs") -> "Runs":
        """Both sets of runs, each run once."""
        pairs = {r.key: (c, r) for c, r in zip(self.configs + other.configs, self.records + other.records, strict=True)}
        return Runs(*zip(*pairs.values(), strict=True))

    @property
    def axes(self) -> list[str]:
        """The seed, and the configuration fields in which the runs differ."""
        fields = [dict(config) for config in self.configs]
        return [name for name in fields[0] if name == "seed" or any(f[name] != fields[0][name] for f in fields)]

    def where(self, **fields) -> "Runs":
        """The runs whose configuration has these values."""
        pairs = zip(self.configs, self.records, strict=True)
        chosen = [(c, r) for c, r in pairs if all(getattr(c, name) == value for name, value in fields.items())]
        if not chosen:
            raise ConfigError(f"no run has {fields}; there are {self.provenance()[self.axes].drop_duplicates()}")
        return Runs(*zip(*chosen, strict=True))

    def table(self, metric: str) -> pd.DataFrame:
        """One row a measurement of a metric: the fields in which the runs differ, step, stage, label, value.

        Metrics: "validation loss", "training loss" (mean since the last row), "gradient norm" (by stage),
        "replica spread" (root mean square, over the weights, of their standard deviation over the run's replicas, if
        there are several), "failure" (one row a lost stage, 0 for the ends), "domain loss" (by domain in `label`),
        "ledger" (by entry in `label`), and those of the probes.
        """
        axes = self.axes
        parts = []
        for config, record in zip(self.configs, self.records, strict=True):
            part = record.metrics[record.metrics["metric"] == metric].drop(columns="metric")
            if len(part):
                parts.append(part.assign(**{name: [getattr(config, name)] * len(part) for name in axes}))
        columns = [*axes, "step", "stage", "label", "value"]
        return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)

    def by_step(self, metric: str = "validation loss") -> pd.DataFrame:
        """A measurement [step, seed], of runs that differ in nothing but the seed."""
        return self.table(metric).pivot(index="step", columns="seed", values="value")

    def final(self, metric: str = "validation loss") -> pd.DataFrame:
        """The last measurement of every run."""
        return self._each(self.table(metric), lambda run: run["value"].iloc[-1])

    def steps_to(self, target: float, metric: str = "validation loss") -> pd.DataFrame:
        """Steps until the metric first falls to the target, interpolated; NaN where it never does."""
        return self._each(self.table(metric), lambda run: _crossing(run["step"], run["value"], target))

    def provenance(self) -> pd.DataFrame:
        """Where every run's numbers come from: key, fields in which the runs differ, versions, device, time."""
        rows = [
            {"key": r.key, **{name: getattr(c, name) for name in self.axes}, **r.provenance}
            for c, r in zip(self.configs, self.records, strict=True)
        ]
        return pd.DataFrame(rows)

    def _each(self, table: pd.DataFrame, value) -> pd.DataFrame:
        groups = table.groupby(self.axes, sort=False, dropna=False)
        return pd.DataFrame([dict(zip(self.axes, names, strict=True)) | {"value": value(run)} for names, run in groups])


def arms(groups: Mapping[str, Runs], measure: Callable[[Runs], pd.DataFrame]) -> pd.DataFrame:
    """One table of several sets of runs: what `measure` gives for each, under its name in the column "arm".

    `arms({"copy": a, "average": b}, Runs.final)`. Of the fields in which runs differ only the seed stays.
    """
    kept = ["seed", "step", "stage", "label", "value"]
    tables = [measure(group).filter(kept).assign(arm=name) for name, group in groups.items()]
    return pd.concat(tables, ignore_index=True)


def run(
    configs: Sequence[RunConfig],
    recorded: str | Path = "runs",
    device: str = "auto",
    show: bool = True,
    store: Store | None = None,
    keep: bool = False,
) -> Runs:
    """The results of all configurations; those not yet recorded or stored are trained now, packed.

    `recorded` is the folder of the notebook's recorded runs. Interrupted training resumes from its last checkpoint;
    runs that another process is training are awaited. Runs that begin with the final state of another (`start`,
    `branch`) have it trained first if its final state is not in the store. `keep` stores the final states of the others
    too. Raises `TrainingError` for runs that diverge, after all others are finished and stored.
    """
    store = store or open_store(recorded=[Path(recorded)])
    keys = [config.key for config in configs]
    by_key = dict(zip(keys, configs, strict=True))
    while missing := [key for key in by_key if store.get(key) is None]:
        _keep_states({parent for key in missing for parent in by_key[key].parents}, store, device, show)
        left = {key: by_key[key] for key in missing if store.get(key) is None}
        if left and not _train(left, by_key, store, device, show, keep):
            store.wait(left)
    _note(by_key)
    return Runs(configs, [store.get(key) for key in keys])


def computed(
    wanted: Sequence[dict],
    compute: Callable[[list[dict]], Iterable[pd.DataFrame]],
    recorded: str | Path = "runs",
    store: Store | None = None,
) -> list[pd.DataFrame]:
    """Tables that no single training run gives, such as plans or ensembles: recorded and stored like runs.

    wanted: all that a table depends on, as JSON, a version of its code among it, to be raised by hand whenever the
    same rest would give other numbers. compute: called with those that are neither recorded nor stored, yields their
    tables in that order; each is kept as soon as it comes. Tables as for `Store.put`.
    """
    store = store or open_store(recorded=[Path(recorded)])
    keys = [key_of({"computed": what}) for what in wanted]
    by_key = dict(zip(keys, wanted, strict=True))
    while missing := [key for key in by_key if store.get(key) is None]:
        with store.claim(missing) as mine:
            for key, table in zip(mine, compute([by_key[key] for key in mine]) if mine else (), strict=True):
                store.put(key, by_key[key], table, {"swarmbook": swarmbook.__version__})
        if not mine:
            store.wait(missing)
    _note(by_key)
    return [store.get(key).metrics for key in keys]


def _train(missing: dict[str, RunConfig], by_key: dict, store: Store, device: str, show: bool, keep: bool) -> bool:
    """Train what nobody else is training, packs that were interrupted first; False if there was nothing to train."""
    from swarmbook.train import packs, train

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
            result = train(pack, progress, device, show, starts)
            metrics, provenance = progress.metrics(), result.provenance()
            for i in result.healthy:
                rows = metrics[metrics["run"] == i].drop(columns="run").reset_index(drop=True)
                for name in ("metric", "label"):
                    rows[name] = rows[name].cat.remove_unused_categories()
                if keep:
                    store.put_state(keys[i], result.state(i))
                store.put(keys[i], pack[i].model_dump(mode="json"), rows, provenance)
            progress.discard()
            any_trained = True
            diverged += result.diverged.values()
    if diverged:
        raise TrainingError("\n".join(diverged))
    return any_trained


def final_states(configs: Iterable[RunConfig], device: str = "auto", show: bool = True) -> dict[str, dict]:
    """By key the states in which runs ended, as of `Pack.state`; those that are not in the store are trained now."""
    return _final_states(set(configs), open_store(), device, show)


def _final_states(configs: set[RunConfig], store: Store, device: str, show: bool) -> dict[str, dict]:
    """By key the states in which runs ended; those that are not in the store are trained, recorded or not."""
    _keep_states(configs, store, device, show)
    return {key: store.state(key) for key in (config.key for config in configs)}


def _keep_states(configs: set[RunConfig], store: Store, device: str, show: bool) -> None:
    """Train, ancestors first and each generation packed, the runs whose final states are not in the store."""
    keeping, key_of_run, there = store.keeping(), cache(lambda config: config.key), set()
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
        if not _train(ready, missing, keeping, device, show, keep=True):
            keeping.wait(ready)


def _note(keys: Iterable[str]) -> None:
    """Tell `swarmbook run --record`, if it listens, which runs and tables the notebook stands on."""
    if path := os.environ.get("SWARMBOOK_RECORD"):
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(f"{key}\n" for key in keys)


def _crossing(steps: pd.Series, values: pd.Series, target: float) -> float:
    steps, values = steps.to_numpy(float), values.to_numpy(float)
    below = np.flatnonzero(values <= target)
    if not len(below):
        return float("nan")
    i = below[0]
    if i == 0:
        return steps[0]
    share = (values[i - 1] - target) / (values[i - 1] - values[i])
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))
