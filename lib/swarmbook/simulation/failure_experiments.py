"""How long iterations take one after another while stages fail, for each recovery scheme (CheckFree, table 2).

- `experiment` runs one scheme under one schedule of failures; `compare` runs all schemes on equal terms, and `compared`
  records what it gives
- equal iterations are simulated once

Serves: CheckFree's throughput figures and the iteration times of table 2.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from swarmbook.errors import ConfigError
from swarmbook.records.computed import computed
from swarmbook.simulation.iteration_time import simulate
from swarmbook.simulation.network import Network
from swarmbook.simulation.recovery_schemes import Scheme, Workload, check_setting, scheme_of

VERSION = 1  # of what `compare` gives: to be raised when the same arguments would give other numbers

Schedule = Sequence[tuple[int, int]]  # (iteration, stage) as in `swarmbook.methods.failures.events`


@dataclass(frozen=True)
class Experiment:
    """What n iterations took, one after another under failures.

    - `seconds` [n] are those of each iteration.
    - `progress` counts the iterations whose updates are in the weights at the end; only rollbacks make it less than n.
    - `sent` is the bytes sent, by purpose.
    - `failures` counts the lost stages.
    - `unrecovered` is that of `swarmbook.simulation.iteration_time.Iteration`, summed over the iterations.
    """

    seconds: np.ndarray
    progress: int
    sent: dict[str, int]
    failures: int
    unrecovered: int

    @property
    def mean(self) -> float:
        """Mean seconds of an iteration, the "iteration time" of CheckFree's table 2."""
        return float(self.seconds.mean())

    @property
    def effective(self) -> float:
        """Seconds for each iteration of progress; infinite if there is no progress."""
        return float(self.seconds.sum()) / self.progress if self.progress else float("inf")


def experiment(
    workload: Workload,
    network: Network,
    scheme: Scheme | str,
    schedule: Schedule = (),
    iterations: int = 500,
    ready: Sequence[float] | None = None,
) -> Experiment:
    """Run so many iterations, repeated ones included, under a schedule of failures (section 4 of the released code).

    schedule: pairs (iteration, stage) as `swarmbook.methods.failures.events` lists them. The stage (1 to S) dies once
    the clock has seen that many iterations, whichever iteration of the training it is then. ready: as in `simulate`.
    Raises `ConfigError` as `simulate` does, and for events outside the experiment.
    """
    scheme = scheme_of(scheme)
    if iterations < 1:
        raise ConfigError(f"iterations must be at least 1, not {iterations}")
    events: dict[int, set[int]] = {}
    for when, stage in schedule:
        if not 0 <= when < iterations:
            raise ConfigError(f"the schedule has an event at iteration {when}, outside 0 to {iterations - 1}")
        events.setdefault(int(when), set()).add(int(stage))
    check_setting(workload, network, set().union(*events.values()))

    state = tuple(ready) if ready is not None else (0.0,) * workload.nodes
    seconds, sent, progress, saved, unrecovered = np.empty(iterations), Counter(), 0, 0, 0
    for i in range(iterations):
        lost = tuple(sorted(events.get(i, ())))
        # A checkpoint that is being sent when a stage dies is not complete: the one before it counts.
        saves = scheme.period is not None and i > 0 and i % scheme.period == 1 % scheme.period
        if lost and scheme.rollback:
            progress, saves = saved, False
        elif saves:
            saved = progress
        seconds[i], state, moved, none = _cached(workload, network, scheme, state, lost, saves)
        sent.update(dict(moved))
        unrecovered += none
        progress += 1
    return Experiment(seconds, progress, dict(sent), sum(map(len, events.values())), unrecovered)


def compare(
    workload: Workload,
    networks: Mapping[str, Network],
    schemes: Mapping[str, Scheme],
    schedules: Mapping[object, Schedule],
    iterations: int = 500,
) -> pd.DataFrame:
    """Compare all schemes on the same workload, networks and failures: one row an experiment.

    Columns: network, scheme, schedule (the keys of the arguments), failures, mean and effective (seconds, see
    `Experiment`), progress (iterations), unrecovered, GB (10^9 bytes sent an iteration).
    Raises `ConfigError` as `experiment` does.
    """
    rows = []
    for place, network in networks.items():
        for name, scheme in schemes.items():
            for label, schedule in schedules.items():
                done = experiment(workload, network, scheme, schedule, iterations)
                rows.append(
                    {
                        **{"network": place, "scheme": name, "schedule": label, "failures": done.failures},
                        **{"mean": done.mean, "effective": done.effective, "progress": done.progress},
                        **{"unrecovered": done.unrecovered, "GB": sum(done.sent.values()) / iterations / 1e9},
                    }
                )
    return pd.DataFrame(rows)


def compared(
    workload: Workload,
    networks: Mapping[str, Network],
    schemes: Mapping[str, Scheme],
    schedules: Mapping[object, Schedule],
    iterations: int = 500,
    recorded: str | Path | None = None,
) -> pd.DataFrame:
    """`compare`, from the record if it is there."""
    given = {
        "compare": VERSION,
        "workload": repr(workload),
        "networks": [[name, repr(network)] for name, network in networks.items()],
        "schemes": [[name, repr(scheme)] for name, scheme in schemes.items()],
        "schedules": [[label, schedule] for label, schedule in schedules.items()],
        "iterations": iterations,
    }

    def compute(_: list[dict]) -> Iterator[pd.DataFrame]:
        yield compare(workload, networks, schemes, schedules, iterations)

    return computed([given], compute, recorded)[0]


@functools.lru_cache(maxsize=1 << 14)
def _cached(
    workload: Workload,
    network: Network,
    scheme: Scheme,
    ready: tuple[float, ...],
    lost: tuple[int, ...],
    saves: bool,
) -> tuple[float, tuple[float, ...], tuple[tuple[str, int], ...], int]:
    """An iteration without its tasks: its seconds, ready times, bytes sent and unrecovered replicas."""
    done = simulate(workload, network, scheme, ready, lost, saves)
    return done.seconds, done.ready, tuple(done.sent.items()), done.unrecovered
