"""Training: one pack of runs in one Fleet, step by step, from nothing or from where it was killed.

Runs that differ only in seed, route, sync, recovery, failure rate or measurements share a Fleet: each keeps its own
weights, batches, failures and learning rates, and its numbers are those it would have alone, to rounding. Within a step, in
the order of CheckFree Algorithm 1: lost stages are rebuilt, then forward and backward over all microbatches, one
clip per (replica, stage), one Adam step; at last replicas exchange what is due.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from swarmbook.config import RunConfig
from swarmbook.data import tokenization as data
from swarmbook.methods.costs import Costs
from swarmbook.methods.measurements import MEASUREMENTS
from swarmbook.methods.recovery import RULES, Lost
from swarmbook.methods.routing import side_by_side, stage_visits
from swarmbook.methods.sync import SYNCS
from swarmbook.records.checkpoint import WorkInProgress
from swarmbook.training.adam import Adam
from swarmbook.training.device import device_of
from swarmbook.training.fleet import Fleet
from swarmbook.training.outer import OuterOptimizer
from swarmbook.training.packing import COMPILE_FLOPS, _fitting, expected_flops
from swarmbook.training.rebuilding import boosted, copied_bytes, count_step, set_moments, surviving_copy, why_diverged
from swarmbook.training.setup import batches_of, held_out_of, rate_of, versions, weight_seeds
from swarmbook.training.state_layout import WEIGHTS

CHECKPOINT_SECONDS = 60.0


def train(
    pack: Sequence[RunConfig],
    progress: WorkInProgress,
    device: str = "auto",
    show: bool = True,
    starts: Mapping[str, dict] | None = None,
) -> "Pack":
    """Train a pack to its end, streaming metrics and checkpoints to `progress`.

    `starts`: by key the `Pack.state` of the runs that these start or branch from. Runs that diverge are listed in the
    result's `diverged` (run index -> step and likely cause); training stops early when none is left.
    """
    state = Pack(pack, progress, device, starts)
    config = pack[0]
    bar = tqdm(
        total=(config.steps - state.begin) * state.tokens_per_step,
        initial=(state.step - state.begin) * state.tokens_per_step,
        desc=f"{len(pack)} run{'s' * (len(pack) > 1)} on {state.fleet.device}",
        unit="tok",
        unit_scale=True,
        mininterval=1.0,
        disable=not show,
    )
    saved = time.monotonic()
    with bar:
        if state.step == state.begin:
            state.evaluate()
        while state.step < config.steps and state.healthy:
            state.advance()
            bar.update(state.tokens_per_step)
            if state.step % config.log_every == 0:
                state.log()
                bar.set_postfix_str(f"loss {state.last_loss:.3f}", refresh=False)
            if state.step % config.evaluate_every == 0 or state.step == config.steps:
                state.evaluate()
            if not state.losses and time.monotonic() - saved > CHECKPOINT_SECONDS:
                state.save()
                saved = time.monotonic()
        state.log()
        state.finish()
    return state


class Pack:
    """A pack in training: its Fleet, optimizer, data and position."""

    def __init__(
        self,
        pack: Sequence[RunConfig],
        progress: WorkInProgress,
        device: str = "auto",
        starts: Mapping[str, dict] | None = None,
    ):
        first = pack[0]
        self.runs, self.progress = list(pack), progress
        self.begin = self.step = first.start.steps if first.start else 0
        self.started, self.seconds, self.trained = time.monotonic(), 0.0, 0
        tokens = {run.data: data.tokens(run.data, "train", run.tokenizer, run.data_limit) for run in pack}
        held_out = {source: held_out_of(first, source) for source in tokens}
        each = [held_out[run.data] for run in pack for _ in range(run.replicas)]
        self.held_out = each[0] if len(tokens) == 1 else np.concatenate(each)  # [1 or R, N, T + 1]
        further = dict.fromkeys(domain for run in pack for domain in run.evaluate_on)
        self.further = {domain: held_out_of(first, domain) for domain in further}  # now: it may be too short
        self.batches = [batches_of(run, tokens[run.data]) for run in pack]
        self.traces = [run.failures() for run in pack]  # each bool [steps, R, S + 1], the last column the ends
        seeds = [seed for run in pack for seed in weight_seeds(run)]
        shape = first.shape(tokens[first.data].vocabulary)
        self.at_once, checkpointing = _fitting(pack, device)  # asked before the weights take their memory
        compile = "auto" if expected_flops(pack, shape) > COMPILE_FLOPS[device_of(device).type] else False
        self.fleet = Fleet(shape, seeds, device, first.precision, compile, checkpointing)
        self.adam = Adam(self.fleet, first.lr)
        self._round()
        self.rate = rate_of(first)
        cells = (len(seeds), first.stages + 1)
        self.norms = torch.ones(cells)
        self.rebuilt = np.full(cells, -1)  # [R, S + 1], the step at which each cell's learning rate was raised
        self.visits = [run.replicas * run.microbatches * run.stages for run in pack]  # of stages, in a step
        self.position = np.full(len(pack), self.step)  # steps of progress; behind `step` after a rollback
        self.outers = [
            OuterOptimizer(run, self.fleet, self.replicas(i)) if SYNCS[run.sync] else None for i, run in enumerate(pack)
        ]
        self.costs = [Costs() for _ in pack]
        self.copies: dict[int, dict] = {}  # run -> what its strategy keeps, taken every `keep_every` steps
        self.losses: list[torch.Tensor] = []
        self.diverged: dict[int, str] = {}
        self.last_loss = float("nan")
        self.tokens_per_step = len(pack) * first.tokens_per_step
        restored = progress.load()
        if restored is not None:
            self._restore(*restored)
            return
        for i, run in enumerate(pack):
            if run.start:
                self._take_over(i, starts[run.start.key])
            elif run.branch:
                self._branch(i, starts[run.branch.key]["fleet"])
            self._keep_copies(i)

    @property
    def healthy(self) -> list[int]:
        return [i for i in range(len(self.runs)) if i not in self.diverged]

    def advance(self) -> None:
        """One training step of every run."""
        for i in range(len(self.runs)):
            if self.traces[i][self.step].any():
                self._fail(i)
        tokens = [batches[position] for batches, position in zip(self.batches, self.position, strict=True)]
        self.losses.append(self.fleet.gradients(np.concatenate(tokens), self._cells(), self.at_once))
        self.norms = self.fleet.clip(self.runs[0].clip)
        for i, outer in self._outers():
            outer.average_gradients(int(self.position[i]), self.costs[i])
        rate = self.rate(self.step)
        self.adam.lr_scale[:] = self._lr_scale(rate)
        self.adam.step(rate)
        self._round()
        self.step += 1
        self.position += 1
        self.trained += self.tokens_per_step
        for i, outer in self._outers():
            outer.step(int(self.position[i]), self.costs[i])
        for i in range(len(self.runs)):
            count_step(self.runs[i], self.fleet.shape, self.visits[i], self.costs[i])
            self._keep_copies(i)

    def log(self) -> None:
        """Stream the training losses since the last call, and take note of runs that have diverged."""
        if not self.losses:
            return
        losses = torch.stack(self.losses).float().cpu()  # [steps, R]
        losses = losses.unflatten(1, (len(self.runs), -1)).mean(2)  # [steps, runs]
        for i in self.healthy:
            bad = (~torch.isfinite(losses[:, i])).nonzero()
            if len(bad):
                self._diverge(i, self.step - len(losses) + int(bad[0]))
        self._record("training loss", losses.mean(0).tolist())
        self.losses = []
        self.last_loss = float(losses.mean(0)[self.healthy].mean())  # nan when none is healthy

    def evaluate(self) -> None:
        """Validation loss of every run on the same held-out sequences, in order whatever the run's route."""
        self._record("validation loss", self.validation_loss())
        if self.runs[0].replicas > 1:
            self._record("replica spread", [self.spread(i) for i in range(len(self.runs))])
        if self.step == self.begin:
            return
        for s in range(self.runs[0].stages):
            norms = self.norms[:, s].unflatten(0, (len(self.runs), -1)).mean(1)
            self._record("gradient norm", norms.tolist(), stage=s + 1)

    def finish(self) -> None:
        """What is measured at the end: losses on further domains, costs, and the measurements that were asked for."""
        for domain, tokens in self.further.items():
            losses = self.validation_loss(tokens=tokens)
            asked = [loss if domain in run.evaluate_on else None for run, loss in zip(self.runs, losses, strict=True)]
            self._record("domain loss", asked, label=domain)
        for i in self.healthy:
            for name, amount in self.costs[i].items():
                self._row(i, "ledger", amount, label=name)
        self.take_measurements()

    def take_measurements(self) -> None:
        """The measurements that runs ask for, by the functions of `swarmbook.methods.measurements`."""
        for name in dict.fromkeys(name for run in self.runs for name in run.measurements):
            asking = [i for i in self.healthy if name in self.runs[i].measurements]
            if asking:
                for i, metric, stage, label, value in MEASUREMENTS[name](self, asking):
                    self._row(i, metric, value, stage, label)

    def replicas(self, i: int) -> range:
        """Rows of run i in the Fleet."""
        each = self.runs[0].replicas
        return range(i * each, (i + 1) * each)

    def validation_loss(self, cells: np.ndarray | None = None, tokens: torch.Tensor | None = None) -> list[float]:
        """Mean loss of each run over its replicas; on other tokens [1, N, T + 1] or another route if given."""
        losses = self.fleet.loss(self.held_out if tokens is None else tokens, cells)  # [R]
        return losses.unflatten(0, (len(self.runs), -1)).mean(1).tolist()

    def spread(self, i: int) -> float:
        """Root mean square of the deviation of weights of run i from their mean over its replicas (released code)."""
        weights = self.fleet.replica_views(self.replicas(i)).values()
        total = sum(float(w.var(0, correction=0).sum(dtype=torch.float64)) for w in weights)
        return math.sqrt(total / self.fleet.shape.parameters)

    def lost(self, i: int, row: int, stage: int, dead: frozenset[int] | None = None) -> Lost:
        """The lost stage of run i at row `row` of the Fleet, for a rule; `dead` with it: itself alone, if not given."""
        run, replica = self.runs[i], row - self.replicas(i)[0]
        rng = run.rng("recovery", self.step, replica, stage)
        lost = Lost(self.fleet, row, stage, dead or frozenset({stage}), self.norms, rng, run.clip)
        lost.moments, lost.costs = run.moments, self.costs[i]
        return lost

    def rebuild(self, i: int, row: int, stage: int, dead: frozenset[int], rule: str) -> None:
        """Write the weights of a lost stage by a rule that keeps no copies, and nothing else: for measurements."""
        lost = self.lost(i, row, stage, dead)
        lost.costs = Costs()
        RULES[rule].rule(lost)

    def state(self, i: int) -> dict:
        """All that run i needs to go on, for runs that start from it."""
        rows = list(self.replicas(i))
        return {
            "fleet": self.fleet.state_dict(rows),
            "adam": self.adam.state_dict(rows),
            "norms": self.norms[rows].clone(),
            "rebuilt": torch.from_numpy(self.rebuilt[rows].copy()),
            "position": int(self.position[i]),
            "outer": self.outers[i].state_dict() if self.outers[i] else None,
        }

    def save(self) -> None:
        state = {
            "fleet": self.fleet.state_dict(),
            "adam": self.adam.state_dict(),
            "norms": self.norms,
            "rebuilt": torch.from_numpy(self.rebuilt),
            "position": torch.from_numpy(self.position),
            "outers": [outer.state_dict() if outer else None for outer in self.outers],
            "ledgers": [dict(costs) for costs in self.costs],
            "copies": self.copies,
            "diverged": self.diverged,
            "seconds": self.seconds + time.monotonic() - self.started,
        }
        self.progress.save(state, self.step)

    def provenance(self) -> dict:
        """How the numbers came about; everything here may differ between two runs of one key."""
        seconds = time.monotonic() - self.started
        return {
            **versions(self.fleet.device, bool(self.fleet.compiled)),
            "packed": len(self.runs),
            "seconds": round(self.seconds + seconds, 1),
            "tokens_per_second": round(self.trained / seconds),
        }

    def _fail(self, i: int) -> None:
        """Lose the cells of run i whose time has come, and rebuild them."""
        strategy, stages = RULES[self.runs[i].recovery], self.runs[i].stages
        lost = [
            self.lost(i, self.replicas(i)[replica], stage, frozenset(np.flatnonzero(dying).tolist()))
            for replica, dying in enumerate(self.traces[i][self.step])
            for stage in np.flatnonzero(dying).tolist()
        ]
        for cell in lost:
            self._row(i, "failure", 1.0, stage=(cell.stage + 1) % (stages + 1))
            kept = self.copies.get(i, {}).get("fleet", {})
            cell.kept = surviving_copy(strategy, cell, kept, (cell.replica - self.replicas(i)[0], cell.stage))
        for cell in lost:  # from here on nothing of a dead stage can be read
            for weight in cell.weights.values():
                weight.fill_(float("nan"))
        for cell in lost:
            strategy.rule(cell)
            if cell.rolled_back:
                self._roll_back(i)
                return
            cell.costs.add("rebuilt", 1)
            if strategy.covers(cell.stage, stages) and cell.kept is None:
                cell.costs.add("not recoverable", 1)
            if cell.boosted:
                self.rebuilt[cell.replica, cell.stage] = self.step
            set_moments(self.adam, (cell.replica, cell.stage), cell, partial(self._moments, cell.replica))

    def _moments(self, replica: int, stage: int) -> tuple[dict, int]:
        """Adam's moments of a cell, and its count of steps."""
        return self.adam.moments(replica, stage), self.adam.steps[replica, stage]

    def _keep_copies(self, i: int) -> None:
        """Copy what the run's strategy keeps every so many steps of progress, the initial state included."""
        run, strategy = self.runs[i], RULES[self.runs[i].recovery]
        if strategy is None or strategy.keeps is None or strategy.always:
            return
        if self.step > self.begin and self.position[i] % run.keep_every:
            return
        copy = self.state(i) if strategy.keeps == "run" else {"fleet": self.fleet.state_dict(list(self.replicas(i)))}
        size = copied_bytes(copy, strategy)
        self.copies[i] = copy | {"bytes": size}
        self.costs[i]["stored"] = max(self.costs[i]["stored"], size)
        if self.step > self.begin:  # initial weights follow from a seed
            self.costs[i].add("sent in training", size)

    def _roll_back(self, i: int) -> None:
        """Put run i back to its last copy: weights, moments, and place in the data."""
        before = int(self.position[i])
        self._take_over(i, self.copies[i])
        self.costs[i].add("sent on failure", self.copies[i]["bytes"])
        self.costs[i].add("steps repeated", before - int(self.position[i]))

    def _take_over(self, i: int, state: dict) -> None:
        rows = list(self.replicas(i))
        self.fleet.load_state_dict(state["fleet"], rows)
        self.adam.load_state_dict(state["adam"], rows)
        self.norms[rows] = state["norms"].to(self.norms.device)
        self.rebuilt[rows] = state["rebuilt"].numpy()
        self.position[i] = state["position"]
        if self.outers[i]:
            self.outers[i].load_state_dict(state.get("outer"))

    def _branch(self, i: int, weights: dict[str, torch.Tensor]) -> None:
        """Begin run i with the final weights of another, of as many replicas or of one."""
        rows = list(self.replicas(i))
        if self.runs[i].branch.replicas == 1:
            weights = {n: w.repeat_interleave(len(rows), WEIGHTS.replica_axis(n)) for n, w in weights.items()}
        self.fleet.load_state_dict(weights, rows)
        self._round()
        if self.outers[i]:
            self.outers[i] = OuterOptimizer(self.runs[i], self.fleet, self.replicas(i))

    def _round(self) -> None:
        """Round the weights and moments of runs that store them in bfloat16."""
        for i, run in enumerate(self.runs):
            if run.storage == "bf16":
                self.adam.round_to_bf16(self.replicas(i))

    def _lr_scale(self, rate: float) -> np.ndarray:
        """Learning rate of every cell in multiples of `rate`: boosted since it was rebuilt, late since a rollback."""
        each = self.runs[0].replicas
        boost = np.repeat([run.lr_boost for run in self.runs], each)[:, None]
        half_life = np.repeat([run.boost_half_life or np.inf for run in self.runs], each)[:, None]
        scale = boosted(self.rebuilt, self.step, boost, half_life)
        if (self.position != self.step).any():
            late = [self.rate(int(position)) / rate for position in self.position]
            scale = scale * np.repeat(late, each)[:, None]
        return scale

    def _cells(self) -> np.ndarray | None:
        """The pack's routes in one array [P, R, M, 2]; None when all are in order."""
        if all(run.route == "in order" for run in self.runs):
            return None
        stages = self.runs[0].stages
        routes = [run.route_at(self.step) for run in self.runs]
        self.visits = [stage_visits(cells, stages) for cells in routes]
        return side_by_side(routes, stages)

    def _outers(self) -> Iterator[tuple[int, OuterOptimizer]]:
        """The runs whose replicas exchange anything."""
        return ((i, outer) for i, outer in enumerate(self.outers) if outer)

    def _record(self, metric: str, values: Sequence[float | None], stage: int = 0, label: str = "") -> None:
        for i in self.healthy:
            if values[i] is not None:
                self._row(i, metric, values[i], stage, label)

    def _row(self, i: int, metric: str, value: float, stage: int = 0, label: str = "") -> None:
        row = {"run": i, "step": self.step, "metric": metric, "stage": stage, "label": label, "value": value}
        self.progress.append([row])

    def _diverge(self, i: int, step: int) -> None:
        losses = np.flatnonzero(self.traces[i].any(axis=(1, 2)))
        self.diverged[i] = why_diverged(self.runs[i], step, losses)

    def _restore(self, state: dict, step: int) -> None:
        self.fleet.load_state_dict(state["fleet"])
        self.adam.load_state_dict(state["adam"])
        self.norms, self.diverged = state["norms"], state["diverged"]
        self.rebuilt, self.position = state["rebuilt"].numpy(), state["position"].numpy()
        self.costs, self.copies = [Costs(entries) for entries in state["ledgers"]], state["copies"]
        self.seconds, self.step = state["seconds"], step
        for i, outer in self._outers():
            outer.load_state_dict(state["outers"][i])
