"""Finished runs, and the tables that are read from their records.

Serves: every figure and table that is drawn from trained runs, in CheckFree, NoLoCo, SkipPipe and HDEE.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from swarmbook.config import RunConfig, by_name
from swarmbook.errors import ConfigError
from swarmbook.records.store import Record


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
        """The seed, and the configuration fields in which the runs differ, by their names in records."""
        fields = [config.recorded for config in self.configs]
        return [name for name in fields[0] if name == "seed" or any(f[name] != fields[0][name] for f in fields)]

    def where(self, **fields) -> "Runs":
        """The runs whose configuration has these values."""
        pairs = zip(self.configs, self.records, strict=True)
        wanted = by_name(fields)
        chosen = [(c, r) for c, r in pairs if all(getattr(c, name) == value for name, value in wanted.items())]
        if not chosen:
            raise ConfigError(f"no run has {fields}; there are {self.provenance()[self.axes].drop_duplicates()}")
        return Runs(*zip(*chosen, strict=True))

    def table(self, metric: str) -> pd.DataFrame:
        """One row a measurement of a metric: the fields in which the runs differ, step, stage, label, value.

        Metrics: "validation loss", "training loss" (mean since the last row), "gradient norm" (by stage),
        "replica spread" (root mean square, over the weights, of their standard deviation over the run's replicas, if
        there are several), "failure" (one row a lost stage, 0 for the ends), "domain loss" (by domain in `label`),
        "ledger" (by entry in `label`), and those of `swarmbook.methods.measurements`.
        """
        axes = self.axes
        parts = []
        for config, record in zip(self.configs, self.records, strict=True):
            part = record.metrics[record.metrics["metric"] == metric].drop(columns="metric")
            if len(part):
                parts.append(part.assign(**{name: [config.recorded[name]] * len(part) for name in axes}))
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
            {"key": r.key, **{name: c.recorded[name] for name in self.axes}, **r.provenance}
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
