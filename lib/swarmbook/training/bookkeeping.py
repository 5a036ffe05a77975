"""What is counted, kept and measured of runs in training, whether one process trains them or many.

It is one concept, longer than most. Each rule stands here once: what a step writes, when a copy is due, what a lost
stage and a rollback cost, what is measured when, how a row of metrics looks, what is said of a run that diverges. How
gradients and losses come about is left to `swarmbook.training.trainer.Pack`, which has several runs in one process, and
to `swarmbook.distributed.rank_trainer.RankTrainer`, which has one rank's part of one run.

Serves: every trained run.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import swarmbook
from swarmbook.config import NUMERICS, RunConfig
from swarmbook.data import tokenization
from swarmbook.methods.costs import Costs, bytes_of
from swarmbook.methods.recovery import RULES, Cells, Lost
from swarmbook.records.checkpoint import WorkInProgress
from swarmbook.records.keys import canonical
from swarmbook.training import rebuilding
from swarmbook.training.device import environment
from swarmbook.training.inner_optimizer import InnerOptimizer
from swarmbook.training.outer import OuterOptimizer
from swarmbook.training.setup import batches_of, held_out_of, rate_of
from swarmbook.training.stacked_stages import StackedStages
from swarmbook.training.state_layout import of_layers


class Bookkeeping:
    """Runs in training that differ in what `swarmbook.training.packing.PACKED` allows, or one rank's part of a run.

    step: steps taken. position: steps of progress of each run, which fall behind `step` by a rollback. norms: gradient
    norms of cells in the last step, before clipping. rebuilt [r, s + 1]: the step at which the learning rate of each
    cell here was raised, -1 for never. losses: those of each step since the last row of them. diverged: by number of
    the run what is to be said of it. Raises DataError for text that is too short for what is asked.
    """

    fleet: StackedStages
    optimizer: InnerOptimizer
    norms: Tensor
    rebuilt: np.ndarray
    outers: Sequence[OuterOptimizer | None]
    cells: Cells  # the stages as recovery rules see them

    def __init__(self, runs: Sequence[RunConfig], progress: WorkInProgress | None):
        first = runs[0]
        self.runs, self.progress = list(runs), progress
        self.begin = self.step = first.start.steps if first.start else 0
        self.started, self.seconds, self.trained = time.monotonic(), 0.0, 0
        tokens = {run.data: tokenization.tokens(run.data, "train", run.tokenizer, run.data_limit) for run in runs}
        held_out = {source: held_out_of(first, source) for source in tokens}
        each = [held_out[run.data] for run in runs for _ in range(run.replicas)]
        self.held_out = each[0] if len(tokens) == 1 else np.concatenate(each)  # [1 or R, N, T + 1]
        further = dict.fromkeys(domain for run in runs for domain in run.evaluate_on)
        self.further = {domain: held_out_of(first, domain) for domain in further}  # now: it may be too short
        self.batches = [batches_of(run, tokens[run.data]) for run in runs]
        self.traces = [run.failures() for run in runs]  # each bool [steps, R, S + 1], the last column the ends
        found = [run.absences() for run in runs]
        self.back = [trace if each is None else each.back for each, trace in zip(found, self.traces, strict=True)]
        self.gone = [None if each is None else each.gone for each in found]  # who is away, as `traces`
        self.shape = first.shape(tokens[first.data].vocabulary)
        self.rate = rate_of(first)
        self.visits = [run.replicas * run.microbatches * run.stages for run in runs]  # of stages, in a step
        self.position = np.full(len(runs), self.step)
        self.costs = [Costs() for _ in runs]
        self.copies: dict[int, dict] = {}  # run -> what its strategy keeps, taken every `keep_every` steps
        self.losses: list[Tensor] = []
        self.diverged: dict[int, str] = {}
        self.last_loss = float("nan")
        self.earlier: list[str] = []  # where else steps before the checkpoint were computed, that this goes on from
        self.tokens_per_step = len(runs) * first.tokens_per_step

    def _set_up(self, fleet: StackedStages) -> None:
        """Begin with these weights."""
        self.fleet = self.cells = fleet
        first = self.runs[0]
        own = first.arguments("optimizer")
        self.optimizer = InnerOptimizer(fleet, first.lr, first.optimizer, first.weight_decay, **own)
        self.rebuilt = np.full(self.optimizer.steps.shape, -1)
        self._round()

    # What the two kinds of training do differently

    def _summed(self, amount: float) -> float:
        """The sum over all processes of what is here."""
        return amount

    def _exchanged(self, i: int) -> Costs:
        """Where run i counts what its replicas send each other."""
        return self.costs[i]

    def _place(self, replica: int, stage: int) -> tuple[int, int]:
        """How `fleet` counts a cell of `cells` that is here."""
        return replica, stage

    def _moments(self, replica: int, stage: int) -> tuple[Mapping, int]:
        """The inner optimizer's buffers of a cell of `cells`, and its count of steps."""
        return self.optimizer.moments(replica, stage), self.optimizer.steps[replica, stage]

    def _slow_cells(self, i: int) -> Mapping[str, Cells]:
        """The slow weights and buffers of run i's exchange as recovery rules see them, by kind."""
        return self.outers[i].cells(self.fleet, self.replicas(i)[0]) if self.outers[i] else {}

    def _norm_rows(self, i: int) -> Sequence[int]:
        """Rows of run i in `norms`."""
        return self.replicas(i)

    def _failure_steps(self, i: int) -> Iterable[int]:
        """Steps at which run i lost stages, or will."""
        return np.flatnonzero(self.traces[i].any(axis=(1, 2)))

    def _put_row(self, row: dict) -> None:
        self.progress.append([row])

    def validation_loss(self, *, tokens: np.ndarray | None = None) -> list[float]:
        """Mean loss of each run over its replicas, in order whatever its route; on other tokens if given."""
        raise NotImplementedError

    def spread(self, i: int) -> float:
        """Root mean square of the deviation of weights of run i from their mean over its replicas (released code)."""
        raise NotImplementedError

    def take_measurements(self) -> None:
        """What is measured at the end, where runs ask for it."""
        raise NotImplementedError

    def _losses_by_run(self) -> Tensor:
        """The mean over replicas of `losses`, [steps, runs], on the CPU."""
        raise NotImplementedError

    def _norms_by_stage(self) -> list[list[float]]:
        """The mean of `norms` over replicas, for each stage of each run."""
        raise NotImplementedError

    # A step

    @property
    def healthy(self) -> list[int]:
        return [i for i in range(len(self.runs)) if i not in self.diverged]

    def replicas(self, i: int) -> range:
        """Rows of run i in the fleet."""
        each = self.fleet.replicas // len(self.runs)
        return range(i * each, (i + 1) * each)

    def _update(self) -> None:
        """Write the weights after an inner step, then what replicas exchange, and take the copies that are due."""
        rate = self.rate(self.step)
        self.optimizer.lr_scale[:] = self._lr_scale(rate)
        self._frozen(self.optimizer.lr_scale)
        self.optimizer.step(rate)
        self._round()
        self.step += 1
        self.position += 1
        self.trained += self.tokens_per_step
        for i, outer in self._outers():
            outer.step(int(self.position[i]), self._exchanged(i), self._away(i))
        for i in range(len(self.runs)):
            there = None if self._there(i) is None else int(self._there(i).sum())
            rebuilding.count_step(self.runs[i], self.shape, self.visits[i], self.costs[i], there)
            self._keep_copies(i)

    def _away(self, i: int) -> np.ndarray | None:
        """The cells of run i that are away in the last step, before the first in that, bool [R, S + 1]; or None."""
        gone = self.gone[i]
        found = None if gone is None else gone[max(self.step - 1, self.begin)]
        return found if found is not None and found.any() else None

    def _there(self, i: int) -> np.ndarray | None:
        """The replicas of run i that are there in the last step, bool [R]; None if no cell is away."""
        return None if self._away(i) is None else ~self._away(i)[:, -1]

    def _cells_there(self, i: int, name: str) -> np.ndarray | None:
        """The cells of a parameter that are there in the last step, bool [R, stages of the parameter]; or None."""
        away = self._away(i)
        return None if away is None else ~(away[:, :-1] if of_layers(name) else away[:, -1:])

    def _frozen(self, scale: np.ndarray) -> None:
        """Set learning rates to 0 where cells are away; scale [r, s + 1]: of the cells here."""
        for i, gone in enumerate(self.gone):
            if gone is not None:
                scale[list(self.replicas(i))] *= ~gone[self.step]

    def _lr_scale(self, rate: float) -> np.ndarray:
        """Learning rate of every cell in multiples of `rate`: boosted since it was rebuilt, late since a rollback."""
        each = len(self.replicas(0))
        boost = np.repeat([run.lr_boost for run in self.runs], each)[:, None]
        half_life = np.repeat([run.boost_half_life or np.inf for run in self.runs], each)[:, None]
        scale = rebuilding.boosted(self.rebuilt, self.step, boost, half_life)
        if (self.position != self.step).any():
            late = [self.rate(int(position)) / rate for position in self.position]
            scale = scale * np.repeat(late, each)[:, None]
        return scale

    def _round(self) -> None:
        """Round the weights of runs that store them in bfloat16, and the moments of those that store these so, too."""
        for i, run in enumerate(self.runs):
            if run.storage != "fp32":
                self.optimizer.round_to_bf16(self.replicas(i), moments=run.storage == "bf16")

    def _outers(self) -> Iterator[tuple[int, OuterOptimizer]]:
        """The runs whose replicas exchange anything."""
        return ((i, outer) for i, outer in enumerate(self.outers) if outer)

    # Lost stages, and the copies that bring them back

    def lost(self, i: int, row: int, stage: int, dead: frozenset[int] | None = None) -> Lost:
        """The lost stage of run i at row `row` of `cells`, for a rule; `dead` with it: itself alone, if not given."""
        run, replica = self.runs[i], row - self.replicas(i)[0]
        rng = run.rng("recovery", self.step, replica, stage)
        lost = Lost(self.cells, row, stage, dead or frozenset({stage}), self.norms, rng, run.clip)
        lost.moments, lost.costs, lost.slow = run.moments, self.costs[i], self._slow_cells(i).get("phi")
        lost.peers = [row - replica + (replica + k) % run.replicas for k in range(1, run.replicas)]
        return lost

    def _lost_cells(self, i: int, cells: Iterable[tuple[int, int]], dying: np.ndarray) -> list[Lost]:
        """These cells (replica, stage) of run i, of those that die [R, S + 1], with what survives of their copies."""
        dying = dying if self.gone[i] is None else dying | self.gone[i][self.step]
        strategy, first, lost = RULES[self.runs[i].recovery], self.replicas(i)[0], []
        for replica, stage in cells:
            cell = self.lost(i, first + replica, stage, frozenset(np.flatnonzero(dying[replica]).tolist()))
            cell.peers = [peer for peer in cell.peers if not dying[peer - first, stage]]
            row, column = self._place(cell.replica, stage)
            kept = self.copies.get(i, {}).get("fleet", {})
            cell.kept = rebuilding.surviving_copy(strategy, cell, kept, (row - first, column))
            lost.append(cell)
        return lost

    def _failure(self, i: int, stage: int, label: str = "") -> None:
        """Note that run i loses a stage. label: why, if its configuration does not say so."""
        self._row(i, "failure", 1.0, (stage + 1) % (self.runs[i].stages + 1), label)

    def _rebuild(self, i: int, cell: Lost, counts: bool = True) -> None:
        """Let the run's rule rebuild a cell, and unless it asks for a rollback do what follows.

        counts: whether to count it, which one of the processes does that have a part of it.
        """
        strategy, place = RULES[self.runs[i].recovery], self._place(cell.replica, cell.stage)
        strategy.rule(cell, **self.runs[i].arguments("recovery"))
        if cell.rolled_back:
            return
        self._rebuild_slow(i, cell)
        if counts:
            cell.costs.add("rebuilt", 1)
            covered = strategy.peers or strategy.covers(cell.stage, self.runs[i].stages)
            if covered and cell.kept is None and not (strategy.peers and cell.peers):
                cell.costs.add("not recoverable", 1)
        if cell.boosted:
            self.rebuilt[place] = self.step
        if cell.moments == "reset" or (cell.moments == "average" and not cell.neighbours):
            self.optimizer.reset(*place)
        elif cell.moments in ("average", "peer", "peers"):
            others = [(peer, cell.stage) for peer in (cell.peers[:1] if cell.moments == "peer" else cell.peers)]
            asked = [(cell.replica, stage) for stage in cell.neighbours] if cell.moments == "average" else others
            sources = [self._moments(*each) for each in asked]
            self.optimizer.average(*place, sources)
            sent = sum(bytes_of(dict(enumerate(pair))) for moments, _ in sources for pair in moments.values())
            cell.costs.add("sent on failure", sent)

    def _erase(self, i: int, lost: Sequence[Lost]) -> None:
        """Overwrite lost weights with NaN, and slow weights that are lost with them: nothing of them can be read."""
        slow = self._slow_cells(i).values() if self.runs[i].slow_weights != "keep" else ()
        for cell in lost:
            for weights in (cell.weights, *(cells.stage(cell.replica, cell.stage) for cells in slow)):
                for weight in weights.values():
                    weight.fill_(float("nan"))

    def _rebuild_slow(self, i: int, cell: Lost) -> None:
        """Fill the slow weights and the outer buffers of a rebuilt cell as the run's `slow_weights` says."""
        run, wish = self.runs[i], self.runs[i].slow_weights
        if wish == "keep":
            return
        for kind, cells in self._slow_cells(i).items():
            rng = run.rng("recovery", self.step, cell.replica - self.replicas(i)[0], cell.stage)
            same = replace(cell, fleet=cells, slow=cells, rng=rng, kept=None)
            if wish == "peer" and cell.peers:
                same.write(same.fetch_from(cell.peers[0]))
            elif wish == "likewise" and cell.kept is None:
                RULES[run.recovery].rule(same, **run.arguments("recovery"))
            else:
                same.write({n: w if kind == "phi" else torch.zeros_like(w) for n, w in cell.weights.items()})
            if run.storage != "fp32":
                for weight in same.weights.values():
                    weight.copy_(weight.bfloat16())

    def _keep_copies(self, i: int) -> None:
        """Copy what the run's strategy keeps every so many steps of progress, the initial state included."""
        run, strategy = self.runs[i], RULES[self.runs[i].recovery]
        if strategy is None or strategy.keeps is None or strategy.always:
            return
        if self.step > self.begin and self.position[i] % run.keep_every:
            return
        copy = self.state(i) if strategy.keeps == "run" else {"fleet": self.fleet.state_dict(list(self.replicas(i)))}
        size = int(self._summed(rebuilding.copied_bytes(copy, strategy)))
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

    # States

    def state(self, i: int) -> dict:
        """All that run i needs to go on, for runs that start from it."""
        outer = self.outers[i].state_dict() if self.outers[i] else None
        return self._tensors(i) | {"position": int(self.position[i]), "outer": outer}

    def _tensors(self, i: int | None = None) -> dict:
        """Copies of the weights, moments, norms and raised learning rates of run i, or of all."""
        rows = None if i is None else list(self.replicas(i))
        return {
            "fleet": self.fleet.state_dict(rows),
            "adam": self.optimizer.state_dict(rows),
            "norms": self.norms[slice(None) if i is None else list(self._norm_rows(i))].clone(),
            "rebuilt": torch.from_numpy(self.rebuilt[slice(None) if i is None else rows].copy()),
        }

    def _take_over(self, i: int, state: Mapping) -> None:
        """Go on with run i from a state; from weights alone as if the run had been initialised with them."""
        rows = list(self.replicas(i))
        self.fleet.load_state_dict(state["fleet"], rows)
        if "adam" in state:
            self.optimizer.load_state_dict(state["adam"], rows)
            self.norms[list(self._norm_rows(i))] = state["norms"].to(self.norms.device)
            self.rebuilt[rows] = state["rebuilt"].numpy()
            self.position[i] = state["position"]
        else:
            self._round()
        if self.outers[i]:
            self.outers[i].load_state_dict(state.get("outer"))

    # Measurements

    def measure(self) -> None:
        """What is due after a step, or before the first."""
        run, begins, ends = self.runs[0], self.step == self.begin, self.step == self.runs[0].steps
        if not begins and self.step % run.log_every == 0:
            self.log()
        if begins or ends or self.step % run.evaluate_every == 0:
            self.evaluate()
        if ends:
            self.log()

    def log(self) -> None:
        """The training loss since the last row of it; runs whose loss is not finite are listed in `diverged`."""
        if not self.losses:
            return
        losses = self._losses_by_run()
        for i in self.healthy:
            bad = (~torch.isfinite(losses[:, i])).nonzero()
            if len(bad):
                step = self.step - len(losses) + int(bad[0])
                self.diverged[i] = rebuilding.why_diverged(self.runs[i], step, self._failure_steps(i))
        self._record("training loss", losses.mean(0).tolist())
        self.losses = []
        self.last_loss = float(losses.mean(0)[self.healthy].mean())  # nan when none is healthy

    def evaluate(self) -> None:
        """Validation loss, how far replicas are apart, and gradient norms by stage."""
        self._record("validation loss", self.validation_loss())
        if self.runs[0].replicas > 1:
            self._record("replica spread", [self.spread(i) for i in range(len(self.runs))])
        if self.step == self.begin:
            return
        for s, norms in enumerate(self._norms_by_stage(), 1):
            self._record("gradient norm", norms, stage=s)

    def finish(self) -> None:
        """What is measured at the end: losses on further domains, the costs, and the measurements that runs ask for."""
        for domain, tokens in self.further.items():
            losses = self.validation_loss(tokens=tokens)
            asked = [loss if domain in run.evaluate_on else None for run, loss in zip(self.runs, losses, strict=True)]
            self._record("domain loss", asked, label=domain)
        for i in self.healthy:
            for name, amount in self.costs[i].items():
                self._row(i, "ledger", amount, label=name)
        self.take_measurements()

    def provenance(self) -> dict:
        """How the numbers came about; everything here may differ between two runs of one key."""
        return {
            "swarmbook": swarmbook.__version__,
            **self._surroundings(),
            **({"earlier": self.earlier} if self.earlier else {}),
            "seconds": round(self._elapsed(), 1),
            "tokens_per_second": round(self.trained / (time.monotonic() - self.started)),
        }

    def _surroundings(self) -> dict:
        """What decides how numbers are rounded."""
        here = {"compiled": self.fleet.compiled, "packed": len(self.runs)}
        return {"numerics": NUMERICS, **environment(self.fleet.device), **here}

    def _made_on(self) -> list[str]:
        """Where all steps so far were computed, each place as JSON, this one last."""
        here = canonical(self._surroundings())
        return [*(place for place in self.earlier if place != here), here]

    def _goes_on_from(self, made_on: Sequence[str] | None) -> None:
        """Note where the steps of a checkpoint were computed; None if that is not known."""
        here = self._made_on()
        self.earlier = [place for place in made_on or ["not known"] if place not in here]

    def _elapsed(self) -> float:
        """Seconds of training, with those until the checkpoint that it goes on from."""
        return self.seconds + time.monotonic() - self.started

    def _record(self, metric: str, values: Sequence[float | None], stage: int = 0, label: str = "") -> None:
        """A row for each healthy run that has a value; runs whose value is not finite are listed in `diverged`."""
        for i in self.healthy:
            if values[i] is None:
                continue
            if math.isfinite(values[i]):
                self._row(i, metric, values[i], stage, label)
            else:
                run, steps = self.runs[i], self._failure_steps(i)
                self.diverged[i] = rebuilding.why_diverged(run, self.step, steps, f"{metric} {label}".rstrip())

    def _row(self, i: int, metric: str, value: float, stage: int = 0, label: str = "") -> None:
        """One measurement of run i now; stage 0 for none."""
        row = {"run": i, "step": self.step, "metric": metric, "stage": stage, "label": label, "value": value}
        self._put_row(row)
