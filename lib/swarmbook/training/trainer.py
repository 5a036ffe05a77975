"""Training: one pack of runs in one Fleet, step by step, from nothing or from where it was killed.

Runs that differ only in seed, route, sync, recovery, failure rate or measurements share a Fleet. Each keeps its own
weights, batches, failures and learning rates, and its numbers are those it would have alone, to rounding. A step goes
in the order of CheckFree Algorithm 1: lost stages are rebuilt, then forward and backward over all microbatches, one
clip per (replica, stage), one step of the inner optimizer. Last of all replicas exchange what is due.

Serves: `swarmbook.runs.run`, and so every figure and table with trained runs.
"""

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from swarmbook.config import RunConfig
from swarmbook.errors import TrainingError
from swarmbook.methods.costs import Costs
from swarmbook.methods.measurements import MEASUREMENTS
from swarmbook.methods.recovery import RULES
from swarmbook.methods.routing import side_by_side, stage_visits
from swarmbook.methods.sync import SYNCS
from swarmbook.records.checkpoint import WorkInProgress
from swarmbook.records.progress_bars import bar
from swarmbook.training.bookkeeping import Bookkeeping
from swarmbook.training.fleet import Fleet
from swarmbook.training.outer import OuterOptimizer
from swarmbook.training.packing import COMPILE_FLOPS, expected_flops, fitting
from swarmbook.training.rebuilding import checkpoint_of
from swarmbook.training.setup import weight_seeds
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
    moving = bar(
        total=(config.steps - state.begin) * state.tokens_per_step,
        initial=(state.step - state.begin) * state.tokens_per_step,
        desc=f"{len(pack)} run{'s' * (len(pack) > 1)} on {state.fleet.device}",
        unit="tok",
        unit_scale=True,
        mininterval=1.0,
        disable=not show,
    )
    saved = time.monotonic()
    with moving:
        if state.step == state.begin:
            state.measure()
        while state.step < config.steps and state.healthy:
            state.advance()
            moving.update(state.tokens_per_step)
            state.measure()
            if not state.losses:
                moving.set_postfix_str(f"loss {state.last_loss:.3f}", refresh=False)
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    state.save()
                    saved = time.monotonic()
        state.finish()
    return state


class Pack(Bookkeeping):
    """A pack in training: its Fleet, optimizer, data and position. Arguments as of `train`."""

    def __init__(
        self,
        pack: Sequence[RunConfig],
        progress: WorkInProgress,
        device: str = "auto",
        starts: Mapping[str, dict] | None = None,
    ):
        super().__init__(pack, progress)
        first, seeds = pack[0], [seed for run in pack for seed in weight_seeds(run)]
        self.at_once, checkpointing = fitting(pack, device)  # asked before the weights take their memory
        compile = "auto" if expected_flops(pack, self.shape) > COMPILE_FLOPS else False
        self._set_up(Fleet(self.shape, seeds, device, first.precision, compile, checkpointing))
        self.norms = torch.ones(self.rebuilt.shape)
        self.outers = [
            OuterOptimizer(run, self.fleet, self.replicas(i)) if SYNCS[run.sync] else None for i, run in enumerate(pack)
        ]
        restored = progress.load()
        if restored is not None:
            self._restore(*restored)
            return
        for i, run in enumerate(pack):
            if run.start:
                self._take_over(i, starts[run.start.key])
            elif run.branch:
                weights = starts[run.branch.key]["fleet"]
                if run.branch.replicas == 1:
                    times = run.replicas
                    weights = {n: w.repeat_interleave(times, WEIGHTS.replica_axis(n)) for n, w in weights.items()}
                self._take_over(i, {"fleet": weights})
            self._keep_copies(i)

    def advance(self) -> None:
        """One training step of every run."""
        for i in range(len(self.runs)):
            if self.traces[i][self.step].any() or self.back[i][self.step].any():
                self._fail(i)
        tokens = [batches[position] for batches, position in zip(self.batches, self.position, strict=True)]
        self.losses.append(self.fleet.gradients(np.concatenate(tokens), self._route(), self.at_once))
        first = self.runs[0]
        self.norms = self.fleet.clip(first.clip, first.clipping == "workers")
        for i, outer in self._outers():
            outer.average_gradients(int(self.position[i]), self.costs[i], self.runs[i].gone_at(self.step))
        self._update()

    def take_measurements(self) -> None:
        """What is measured at the end, where runs ask for it."""
        for name in dict.fromkeys(name for run in self.runs for name in run.measurements):
            asking = [i for i in self.healthy if name in self.runs[i].measurements]
            if asking:
                measure = MEASUREMENTS[name]
                before = None if measure.__module__.startswith("swarmbook.") else self.fleet.state_dict()
                rows = list(measure(self, asking))
                after = self.fleet.named_weights()
                if before and not all(_same_bits(before[weight], after[weight]) for weight in before):
                    self.fleet.load_state_dict(before)
                    raise TrainingError(
                        f"measurement {name!r} left the weights changed, and what comes after it would be false: "
                        "put back what it changes (`fleet.state_dict` and `fleet.load_state_dict`)"
                    )
                for i, metric, stage, label, value in rows:
                    self._row(i, metric, value, stage, label)

    def validation_loss(self, cells: np.ndarray | None = None, *, tokens: np.ndarray | None = None) -> list[float]:
        """Mean loss of each run over its replicas; on other tokens [1, N, T + 1] or another route if given.

        Where nodes are away, it is over the replicas that are there, past what is away as in training.
        """
        if cells is None and any(self._away(i) is not None for i in range(len(self.runs))):
            cells = side_by_side([run.in_order(self._away(i)) for i, run in enumerate(self.runs)], self.shape.stages)
        losses = self.fleet.loss(self.held_out if tokens is None else tokens, cells)  # [R]
        return self._means(losses[None])[0].tolist()

    def _means(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the replicas of each run that are there, [steps, runs], of values [steps, R], the last last."""
        values, last = values.unflatten(1, (len(self.runs), -1)), max(self.step, self.begin + 1)
        means = values.mean(2)
        for i, gone in enumerate(self.gone):
            if gone is not None:
                there = torch.from_numpy(~gone[last - len(values) : last, :, -1]).to(values.device)
                means[:, i] = values[:, i].where(there, 0.0).sum(1) / there.sum(1)
        return means

    def spread(self, i: int) -> float:
        """Root mean square of the deviation of weights of run i from their mean over its replicas (released code)."""
        total = 0.0
        for name, w in self.fleet.replica_views(self.replicas(i)).items():
            there = self._cells_there(i, name)
            if there is None:
                total += float(w.var(0, correction=0).sum(dtype=torch.float64))
                continue
            for s in range(w.shape[2]):
                rows = np.flatnonzero(there[:, s])
                total += float(w[rows, :, s].var(0, correction=0).sum(dtype=torch.float64)) if len(rows) else 0.0
        return math.sqrt(total / self.shape.parameters)

    def rebuild(self, i: int, row: int, stage: int, dead: frozenset[int], rule: str) -> None:
        """Write the weights of a lost stage by a rule that keeps no copies, and nothing else: for measurements."""
        lost = self.lost(i, row, stage, dead)
        lost.costs = Costs()
        run = self.runs[i]
        RULES[rule].rule(lost, **(run.arguments("recovery") if rule == run.recovery else {}))

    def save(self) -> None:
        """Keep a checkpoint from which this pack goes on."""
        outers = [outer.state_dict() if outer else None for outer in self.outers]
        progress = (
            self.position.tolist(),
            outers,
            self.costs,
            self.copies,
            self.diverged,
            self._elapsed(),
            self._made_on(),
        )
        self.progress.save(checkpoint_of(self._tensors(), *progress), self.step)

    def _restore(self, state: dict, step: int) -> None:
        self.fleet.load_state_dict(state["fleet"])
        self.optimizer.load_state_dict(state["adam"])
        self.norms, self.diverged = state["norms"], state["diverged"]
        self.rebuilt, self.position = state["rebuilt"].numpy(), state["position"].numpy()
        self.costs, self.copies = [Costs(entries) for entries in state["ledgers"]], state["copies"]
        self.seconds, self.step = state["seconds"], step
        self._goes_on_from(state.get("made_on"))
        for i, outer in self._outers():
            outer.load_state_dict(state["outers"][i])

    def _fail(self, i: int) -> None:
        """Lose the cells of run i whose time has come, and rebuild them."""
        for _, stage in np.argwhere(self.traces[i][self.step]).tolist():
            self._failure(i, stage)
        back = self.back[i][self.step]
        lost = self._lost_cells(i, np.argwhere(back).tolist(), back)
        self._erase(i, lost)
        for cell in lost:
            self._rebuild(i, cell)
            if cell.rolled_back:
                self._roll_back(i)
                return

    def _route(self) -> np.ndarray | None:
        """The pack's routes in one array [P, R, M, 2]; None when all are in order."""
        if all(run.route == "in order" and gone is None for run, gone in zip(self.runs, self.gone, strict=True)):
            return None
        stages = self.runs[0].stages
        routes = [run.route_at(self.step) for run in self.runs]
        self.visits = [stage_visits(cells, stages) for cells in routes]
        return side_by_side(routes, stages)

    def _losses_by_run(self) -> torch.Tensor:
        return self._means(torch.stack(self.losses).float().cpu())

    def _norms_by_stage(self) -> list[list[float]]:
        norms = self.norms[:, :-1].unflatten(0, (len(self.runs), -1))  # [runs, R, S]
        means = [norms[..., s].mean(1) for s in range(self.runs[0].stages)]
        for i in range(len(self.runs)):
            if (away := self._away(i)) is not None:
                for s, mean in enumerate(means):
                    there = ~away[:, s]
                    mean[i] = norms[i, there, s].mean() if there.any() else 0.0
        return [mean.tolist() for mean in means]


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal, NaN included, which runs that diverged are full of."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
