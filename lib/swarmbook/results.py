"""Finished runs as tables: a measurement, the last one, the steps to a target, by the fields in which runs differ.

An arm is one of several sets of runs that are compared, such as all seeds of one recovery strategy.

Serves: every figure and table that stands on training.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from swarmbook import tables
from swarmbook.config import RunConfig, by_name
from swarmbook.errors import ConfigError, unknown
from swarmbook.records.store import Record

# Whatever we may record: in training, and by our measurements (`swarmbook.methods.measurements`)
METRICS = ("validation loss", "domain loss", "training loss", "gradient norm", "replica spread", "failure", "ledger")
METRICS += ("loss jump", "pair jump", "missing stages", "partial loss", "partial perplexity", "similarity")
METRICS += ("re-initialisation error", "mean-weight loss", "averaged loss", "averaged spread", "replica loss")
METRICS += ("own-shard loss",)


class Runs:
    """Finished runs, in the order of their configurations."""

    def __init__(self, configs: Sequence[RunConfig], records: Sequence[Record]):
        self.configs, self.records = list(configs), list(records)

    def __len__(self) -> int:
        return len(self.configs)

    def _repr_html_(self) -> str:
        return tables.html(f"{len(self)} runs, each with its final validation loss (nats per token)", self._shown())

    def _shown(self) -> Iterator[dict]:
        axes = self.axes if self.configs else []
        for config, record in zip(self.configs, self.records, strict=True):
            losses = record.metrics["value"][record.metrics["metric"] == "validation loss"]
            found = {"validation loss": losses.iloc[-1] if len(losses) else None, "key": record.key}
            yield {name: str(config.recorded[name]) for name in axes} | found

    def __add__(self, other: "Runs") -> "Runs":
        """Both sets of runs, each run once."""
        pairs = {r.key: (c, r) for c, r in zip(self.configs + other.configs, self.records + other.records, strict=True)}
        return Runs(*zip(*pairs.values(), strict=True))

    @cached_property
    def axes(self) -> list[str]:
        """The seed, and the configuration fields in which the runs differ, by their names in records."""
        first, *others = self._fields
        return [name for name in first if name == "seed" or any(f[name] != first[name] for f in others)]

    @cached_property
    def _fields(self) -> list[dict]:
        return [config.recorded for config in self.configs]

    def where(self, **fields) -> "Runs":
        """The runs whose configuration has these values; ConfigError if there are none, or a field is unknown."""
        pairs = zip(self.configs, self.records, strict=True)
        wanted = by_name(fields)
        for name in wanted:
            if name not in RunConfig.model_fields:
                raise ConfigError(unknown("field", name, RunConfig.model_fields))
        chosen = [(c, r) for c, r in pairs if all(getattr(c, name) == value for name, value in wanted.items())]
        if not chosen:
            raise ConfigError(f"no run has {fields}; there are {self.provenance()[self.axes].drop_duplicates()}")
        return Runs(*zip(*chosen, strict=True))

    def table(self, metric: str) -> pd.DataFrame:
        """One row a measurement of a metric: the fields in which the runs differ, step, stage, label, value.

        - "validation loss", and "domain loss" (by domain, in `label`): nats a token
        - "training loss": nats a token, the mean since the last row
        - "gradient norm": by stage, before clipping
        - "replica spread": of several replicas, the root mean square over weights of their standard deviation
        - "failure": one row a lost stage, from 1; 0 stands for the ends (embedding and head)
        - "ledger": what the run has cost, by entry in `label`
        - the metrics of the run's `measurements`, see `swarmbook.methods.measurements`

        Empty if no run has recorded it. ConfigError for a metric that neither these runs nor `METRICS` know.
        """
        self._check_metric(metric)
        columns = ["step", "stage", "label", "value"]
        parts, runs = [], []
        for fields, record in zip(self._fields, self.records, strict=True):
            if len(rows := _rows(record.metrics, metric)):
                parts.append(record.metrics[columns].take(rows))
                runs.append(pd.DataFrame({name: [fields[name]] for name in self.axes}))
        if not parts:
            return pd.DataFrame(columns=[*self.axes, *columns])
        by_run = pd.concat(runs, ignore_index=True).take(np.repeat(range(len(parts)), [len(part) for part in parts]))
        return pd.concat([by_run.reset_index(drop=True), pd.concat(parts, ignore_index=True)], axis=1)

    def by_step(self, metric: str = "validation loss") -> pd.DataFrame:
        """A metric as a table [step, seed]; ConfigError for runs that differ in more than the seed."""
        table = self.table(metric)
        if self.axes != ["seed"] or table.duplicated(["step", "seed"]).any():
            columns = [name for name in (*self.axes, "stage", "label") if name != "seed"]
            several = [name for name in columns if table[name].astype(str).nunique() > 1]
            raise ConfigError(
                f"{metric!r} has several values at a step of a seed, by {', '.join(several)}: "
                "choose runs with `where`, or rows of `table`"
            )
        return table.pivot(index="step", columns="seed", values="value")

    def final(self, metric: str = "validation loss") -> pd.DataFrame:
        """The last measurement of every run."""
        return self._each(metric, lambda steps, values: values[-1])

    def mean(self, metric: str = "validation loss") -> pd.DataFrame:
        """The mean of every run over what was measured after it had begun, each measurement counted alike."""
        return self._each(metric, lambda steps, values: values[steps > steps[0]].mean())

    def steps_to(self, target: float, metric: str = "validation loss") -> pd.DataFrame:
        """The step at which the metric first falls to the target, interpolated; NaN for runs in which it never does.

        ConfigError for a target that is NaN.
        """
        if np.isnan(target):
            raise ConfigError(f"the target for {metric!r} is {target}; give a number")
        return self._each(metric, lambda steps, values: _crossing(steps, values, target))

    def provenance(self) -> pd.DataFrame:
        """One row a run: its key, the fields in which the runs differ, versions, device, time."""
        rows = [
            {"key": r.key, **{name: c.recorded[name] for name in self.axes}, **r.provenance}
            for c, r in zip(self.configs, self.records, strict=True)
        ]
        return pd.DataFrame(rows)

    def _check_metric(self, metric: str) -> None:
        if metric not in METRICS:
            recorded = (name for record in self.records for name in record.metrics["metric"].unique())
            known = dict.fromkeys([*METRICS, *recorded])
            if metric not in known:
                raise ConfigError(unknown("metric", metric, known))

    def _each(self, metric: str, value: Callable[[np.ndarray, np.ndarray], float]) -> pd.DataFrame:
        """For each run that has the metric the fields in which the runs differ, and a number from steps and values."""
        self._check_metric(metric)
        found = {}
        for fields, record in zip(self._fields, self.records, strict=True):
            if len(rows := _rows(record.metrics, metric)):
                of = {name: np.nan if fields[name] is None else fields[name] for name in self.axes}
                steps, values = (record.metrics[name].to_numpy(float)[rows] for name in ("step", "value"))
                found[tuple(of.values())] = of | {"value": value(steps, values)}
        return pd.DataFrame(found.values())


def arms(groups: Mapping[str, Runs], measure: Callable[[Runs], pd.DataFrame]) -> pd.DataFrame:
    """What `measure` gives for each of several sets of runs, as one table with the name of the set in column "arm".

    Such as `arms({"copy": a, "average": b}, Runs.final)`. Of the fields in which runs differ only the seed stays.
    """
    kept = ["seed", "step", "stage", "label", "value"]
    tables = [measure(group).filter(kept).assign(arm=name) for name, group in groups.items()]
    return pd.concat(tables, ignore_index=True)


def _rows(metrics: pd.DataFrame, metric: str) -> np.ndarray:
    """The numbers of a metric's rows."""
    return np.flatnonzero(np.asarray(metrics["metric"].array == metric, dtype=bool))


def _crossing(steps: np.ndarray, values: np.ndarray, target: float) -> float:
    """The step at which values first reach the target, on a line between two measurements; NaN if they never do."""
    below = np.flatnonzero(values <= target)
    if not len(below):
        return float("nan")
    i = below[0]
    if i == 0:
        return steps[0]
    way = (values[i - 1] - target) / (values[i - 1] - values[i])
    return float(steps[i - 1] + way * (steps[i] - steps[i - 1]))
