"""Which rows a run's configuration makes it record: asked of every run before it is kept.

A row is a measurement (step, metric, stage, label, value). What a run records while it trains follows from its
configuration alone: `planned` derives it from that, and not from how training went. So a run that is not what its key
says, because its rows were lost, doubled or mixed with another's, is refused, whatever brought that about.

Serves: every run that is put into the store, and `swarmbook verify`.
"""

from collections import Counter

import numpy as np
import pandas as pd

from swarmbook.config import RunConfig
from swarmbook.errors import StoreError

Place = tuple[int, str, int, str]  # step, metric, stage from 1 or 0 for none, label
MADE_IN_TRAINING = ("training loss", "validation loss", "gradient norm", "replica spread", "failure", "domain loss")


def planned(run: RunConfig) -> Counter[Place]:
    """How often each row of `MADE_IN_TRAINING` is due. Rows of "failure" are one a replica that loses the stage."""
    begin = run.start.steps if run.start else 0
    logged = {step for step in range(begin + 1, run.steps + 1) if step % run.log_every == 0} | {run.steps}
    evaluated = {step for step in range(begin + 1, run.steps + 1) if step % run.evaluate_every == 0} | {run.steps}
    due: Counter[Place] = Counter((step, "training loss", 0, "") for step in logged)
    due.update((step, "validation loss", 0, "") for step in evaluated | {begin})
    due.update((step, "gradient norm", stage, "") for step in evaluated for stage in range(1, run.stages + 1))
    if run.replicas > 1:
        due.update((step, "replica spread", 0, "") for step in evaluated | {begin})
    dying = run.failures()  # bool [steps, R, S + 1], the last column the ends
    lost = ((int(step), int(stage)) for step, _, stage in np.argwhere(dying) if step >= begin)
    due.update((step, "failure", (stage + 1) % (run.stages + 1), "") for step, stage in lost)
    due.update((run.steps, "domain loss", 0, domain) for domain in set(run.evaluate_on))
    return due


def faults(run: RunConfig, metrics: pd.DataFrame, undisturbed: bool = True) -> list[str]:
    """What is wrong with the rows of a run, in a few words each; empty if nothing is.

    Costs ("ledger") and what the run's `measurements` give have the run's last step. All but the latter is finite: a
    measurement may be undefined, and says so. undisturbed: whether no stages were lost but those that the configuration
    says.
    """
    places = list(zip(*(metrics[name].tolist() for name in ("step", "metric", "stage", "label")), strict=True))
    found, due = Counter(place for place in places if place[1] in MADE_IN_TRAINING), planned(run)
    wrong = []
    for metric in MADE_IN_TRAINING:
        if metric == "failure" and not undisturbed:
            continue
        for word, rows in (("missing", due - found), ("too many", found - due)):
            if steps := sorted(place[0] for place in rows.elements() if place[1] == metric):
                wrong.append(f"{len(steps)} rows of {metric!r} are {word}, the first at step {steps[0]}")
    last = [place for place in places if place[1] not in MADE_IN_TRAINING]
    if late := [place for place in last if place[0] != run.steps]:
        wrong.append(f"{late[0][1]!r} stands at step {late[0][0]}, not at the last one, {run.steps}")
    costs = Counter(place for place in last if place[1] == "ledger")
    if not costs or max(costs.values()) > 1:
        wrong.append(f"the costs ('ledger') are {'doubled' if costs else 'missing'}")
    own = metrics["metric"].isin([*MADE_IN_TRAINING, "ledger"]).to_numpy()
    endless = own & ~np.isfinite(metrics["value"].to_numpy())
    if endless.any():
        row = metrics.iloc[int(np.argmax(endless))]
        wrong.append(f"{row['metric']!r} is {row['value']} at step {row['step']}")
    return wrong


def check(run: RunConfig, metrics: pd.DataFrame, undisturbed: bool = True) -> None:
    """Raise StoreError if these are not the rows that the configuration asks for. Arguments as of `faults`."""
    if wrong := faults(run, metrics, undisturbed):
        raise StoreError(
            f"run {run.key} is not kept, because its rows are not those of its configuration: {'; '.join(wrong)}. "
            "Run the same command again; if it says the same, please report it"
        )
