"""One rank's part of a run on many processes, in training.

It is one concept, longer than most: a rank in training, and what the phases of a step owe to ranks that may be lost.

- a stage that the run's trace kills loses its weights, and its rank rebuilds it from what other ranks send to it. A
  rank whose process is killed can come back as a new one that has lost all its cells. The others then repeat the step
  from the weights before it, which they still have: no weight is written until all ranks have their gradients
- copies that a recovery relies on are kept where the stage is, and what sending them would cost is in the costs. Only
  where processes can be replaced do copies of the ends, on which CheckFree+ relies, lie with another process
- every rank has the same table of metrics as stacked training. Losses and norms for it are summed over all ranks, which
  the methods themselves do not need
- rank 0 keeps checkpoints and final states as stacked training does (`swarmbook.distributed.resharding`), reads those
  that a run begins with, and takes alone the measurements that runs ask for

Serves: `python -m swarmbook.distributed`.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from swarmbook.config import RunConfig
from swarmbook.distributed import resharding
from swarmbook.distributed.communicator import Communicator, LostRank
from swarmbook.distributed.ends_copies import EndsCopies
from swarmbook.distributed.mesh import Mesh
from swarmbook.distributed.outer import RankOuter
from swarmbook.distributed.pipeline_executor import PipelineExecutor
from swarmbook.distributed.remote_stages import RemoteSlow, RemoteStages
from swarmbook.distributed.schedule_1f1b import PipelineTask, tasks_of
from swarmbook.distributed.stage_shard import StageShard
from swarmbook.errors import TrainingError
from swarmbook.methods.costs import ENTRIES, Costs
from swarmbook.methods.recovery import RULES
from swarmbook.methods.routing import stage_visits
from swarmbook.methods.sync import SYNCS
from swarmbook.records.checkpoint import WorkInProgress
from swarmbook.records.keys import key_of
from swarmbook.training import packing, rebuilding, trainer
from swarmbook.training.bookkeeping import Bookkeeping
from swarmbook.training.device import moved
from swarmbook.training.state_layout import LAYERS

LOST_PROCESS = "lost process"  # the label of a failure that is not the configuration's


class RankTrainer(Bookkeeping):
    """One rank's part of a run in training; `rows` are its metrics, on every rank the same.

    A step t is three phases: stages that die are rebuilt (LOSE), all stages are trained (LEARN), and what is due is
    measured (MEASURE). With a recovery each phase ends in an exchange between all ranks, so that no rank is more than
    one exchange ahead of another. `phase` counts them: 3 t + LOSE, 3 t + LEARN, 3 t + MEASURE. The one before the first
    step measures what the run begins with; None is that of a process that has none of what belongs to it yet.

    With a recovery `norms` and `losses` are those of all ranks, else this rank's part. `costs` are those of all ranks
    together; `pending` is what this rank has counted since they were last summed. progress: where rank 0 keeps the
    run's rows and checkpoints; None on other ranks.

    `events` are the losses of processes, which the configuration knows nothing of. From the first one on this is
    another run, with a `key` of its own, and no checkpoint is kept: who starts the run again goes on from the last one
    before.
    """

    LOSE, LEARN, MEASURE = range(3)

    def __init__(self, run: RunConfig, mesh: Mesh, comm: Communicator, progress: WorkInProgress | None = None):
        super().__init__([run], progress)
        self.run, self.mesh, self.comm = run, mesh, comm
        self.phase: int | None = None
        self._first = 3 * self.begin - 1  # the phase of whoever has all that belongs to it first
        costly = packing.expected_flops([run], self.shape) > packing.COMPILE_FLOPS * mesh.ranks
        self._set_up(StageShard(run, self.shape, mesh, comm, "auto" if costly else False))
        self.strategy = RULES[run.recovery]
        asks_peers = self.strategy is not None and (self.strategy.peers or run.slow_weights == "peer")
        self.outers = [RankOuter(run, self.fleet, mesh, comm) if SYNCS[run.sync] else None]
        kept = self.outers[0].cells(self.fleet) if self.outers[0] else {}
        self.cells = RemoteStages(self.fleet, self.optimizer, kept, mesh, comm, asks_peers)
        replaceable = self.strategy is not None and self.strategy.keeps == "ends" and comm.replaceable
        self.ends_copies = EndsCopies(self.fleet, mesh, comm) if replaceable else None
        all_cells = run.replicas, run.stages + 1
        self.norms = torch.ones(all_cells if self.strategy else self.rebuilt.shape, device=self.fleet.device)
        self.pending = Costs()
        self.events: list[dict] = []
        self.rows: list[dict] = []
        self.final_rows: list[dict] = []  # of what is measured once, at the end
        self._unconfirmed: list[dict] = []  # rows of this phase, until its exchange is done
        self._tasks: tuple[bytes, list[PipelineTask]] = (b"", [])  # of the last route
        self._undo: dict | None = None  # what there was before a step whose exchange has begun
        self._saved = time.monotonic()
        self._streamed = 0  # rows that are in `progress`

    def resume(self, parent: resharding.State | None, joins: bool) -> None:
        """Take over the run's last checkpoint, or what its parent ended with, where there is one: rank 0 has both.

        joins: this process is new, and the others tell it what they have come to.
        """
        whole, kept, news = parent, None, None
        restored = self.progress.load() if self.progress else None
        rows = self._stream()
        self._streamed = len(rows)
        if joins:
            return
        if restored:
            checkpoint, step = restored
            whole, kept = rebuilding.state_in(checkpoint), checkpoint["copies"].get(0)
            news = step, rows, checkpoint["ledgers"][0], checkpoint["seconds"]
            self._goes_on_from(checkpoint.get("made_on"))
        elif parent and self.run.branch:
            whole = {"fleet": parent["fleet"]}
        given, copied, news = self.comm.broadcast((whole is not None, kept is not None, news), 0)
        if given:
            self._take_over(0, resharding.scatter(whole, self.mesh, self.comm))
        if news:
            self.step, self.rows, costs, self.seconds = news
            self.costs, self._first = [Costs(costs)], 3 * self.step
            self.comm.print_once(f"goes on from its checkpoint at step {self.step}")
        else:
            self._keep_copies(0)
        if copied:
            self.copies[0] = resharding.scatter(kept, self.mesh, self.comm)

    @property
    def key(self) -> str:
        """The key of the result: that of the run, or where processes were lost one that says when and which."""
        return key_of({"run": self.run.key, "lost processes": self.events}) if self.events else self.run.key

    def config(self) -> dict:
        """The configuration as the store keeps it. With lost processes it is none that could be trained again."""
        return self.run.model_dump(mode="json") | ({"lost_processes": self.events} if self.events else {})

    def train(self, conclude: Callable[[], None]) -> None:
        """All steps, and what `conclude` does then on all ranks; TrainingError if the loss is not finite any more.

        conclude: is done again if a rank was lost meanwhile. Finished if the others have done it.
        """
        broken = False
        while True:
            try:
                if broken:
                    self.comm.rendezvous(self.phase)
                    broken = False
                self._catch_up()
                phases = self.lose, self.advance, self.measure
                while self.phase < 3 * self.run.steps:
                    phases[self.phase % 3]()
                    self.phase += 1
                self.finish()
                conclude()
                return
            except LostRank:
                broken = True  # its traceback holds connections, which are to close before all meet again

    def lose(self) -> None:
        """The stages that the trace kills at the start of the step."""
        lost, back = self.traces[0][self.step], self.back[0][self.step]
        if lost.any() or back.any():
            self._rebuild_all(lost, back)

    def advance(self) -> None:
        """One step of training; no weight is written before all ranks have their gradients.

        Where processes can be replaced and the step writes what an exchange keeps, all is kept as it was until all
        ranks have done the exchange.
        """
        run, position, outer = self.run, int(self.position[0]), self.outers[0]
        exchanges = outer and (outer.due(position + 1) or (outer.method.gradients and outer.method.buffers))
        if exchanges and self.comm.replaceable:
            now = {"step": self.step, "losses": list(self.losses), "costs": Costs(self.costs[0])}
            self._undo = self.state(0) | now
        tokens = moved(self.batches[0][position], self.fleet.device)
        cells = run.route_at(self.step)
        self.visits = [stage_visits(cells, run.stages)]
        gone = run.gone_at(self.step)
        key = cells.tobytes() + (b"" if gone is None else gone.tobytes())
        if self._tasks[0] != key:
            self._tasks = key, tasks_of(cells, self.mesh, absent=_absent(gone))
        loss = PipelineExecutor(self.fleet, tokens, back=True).run(self._tasks[1], self.comm)
        norms = self.fleet.clip(run.clip, run.clipping == "workers")
        for i, outer in self._outers():
            outer.average_gradients(position, self._exchanged(i), gone)
        if self.strategy:
            loss, norms = self._agree(loss, norms)
        self.losses.append(loss)
        self.norms = norms
        self._update()
        if self._undo:
            self._charge(self._summed(self._own_costs()))
            self._undo = None

    def measure(self) -> None:
        """What is due after a step, or before the first; rank 0 keeps a checkpoint now and then."""
        if self.ends_copies:
            self.ends_copies.renew()
        losses, self._unconfirmed = self.losses, []
        try:
            super().measure()
            logged = bool(losses) and not self.losses
            if self.diverged:
                raise TrainingError(self.diverged[0])
            due = False
            if logged or ((self._unconfirmed or self.ends_copies) and self.strategy):
                due = self._agree_to_save()
        except LostRank:
            self.losses = losses  # who is lost before the exchange is done measures this again
            raise
        self._confirm()
        if logged:
            self.comm.print_once(f"step {self.step}: loss {self.last_loss:.3f}")
            if due:
                self.save()

    def finish(self) -> None:
        """Losses on further domains, the costs, and measurements."""
        self._unconfirmed = []
        self._charge(self._summed(self._own_costs()))
        super().finish()
        if self.diverged:
            raise TrainingError(self.diverged[0])

    def take_measurements(self) -> None:
        """Rank 0 takes the measurements that the run asks for, in a Fleet of the whole run."""
        self.final_rows, self._unconfirmed = self._unconfirmed, []
        if not self.run.measurements:
            return
        checkpoint = self._checkpoint()
        if checkpoint:
            with TemporaryDirectory(prefix="swarmbook-") as folder:
                progress = WorkInProgress(Path(folder))
                progress.save(checkpoint, self.step)
                trainer.Pack([self.run], progress, str(self.comm.device)).take_measurements()
                self.final_rows += progress.metrics().to_dict("records")

    def save(self) -> None:
        """Keep a checkpoint from which stacked training could go on as well; rank 0 writes it."""
        checkpoint = self._checkpoint()
        if checkpoint:
            self.progress.append(self.rows[self._streamed :])
            self._streamed = len(self.rows)
            self.progress.save(checkpoint, self.step)
        self._saved = time.monotonic()

    def _checkpoint(self) -> dict | None:
        """What rank 0 keeps so that the run can go on; None on other ranks."""
        self._charge(self._summed(self._own_costs()))
        whole = resharding.gather(self.state(0), self.mesh, self.comm)
        copies = {i: resharding.gather(copy, self.mesh, self.comm) for i, copy in self.copies.items()}
        if not whole:
            return None
        progress = [whole["position"]], [whole["outer"]], self.costs, copies, self.diverged, self._elapsed()
        return rebuilding.checkpoint_of(whole, *progress, self._made_on())

    def validation_loss(self, *, tokens: np.ndarray | None = None) -> list[float]:
        """Mean loss of all replicas on the held-out sequences, or on other tokens [1, N, T + 1]."""
        run, held_out = self.run, self.held_out if tokens is None else tokens
        M = math.gcd(run.microbatches, held_out.shape[1])
        held_out = torch.as_tensor(held_out, device=self.fleet.device).unflatten(1, (M, -1))
        held_out = held_out.expand(run.replicas, *held_out.shape[1:])  # [R, M, B, T + 1]
        away = self._away(0)
        tasks = tasks_of(run.in_order(away, M), self.mesh, back=False, absent=_absent(away))
        executor = PipelineExecutor(self.fleet, held_out, back=False)
        nats = self.comm.all_reduce(executor.run(tasks, self.comm).double())
        return [float(nats) / ((run.replicas - len(_absent(away))) * executor.count)]

    def spread(self, i: int) -> float:
        """As `Pack.spread`."""
        total = torch.zeros(1, dtype=torch.float64, device=self.fleet.device)
        for name, w in self.fleet.replica_views(range(self.fleet.replicas)).items():
            there = self._cells_there(0, name)
            if there is None:
                mean = self.comm.all_reduce(w.sum(0), self.mesh.column(self.comm.rank)) / self.run.replicas
                total += (w - mean).square().sum(dtype=torch.float64) / self.run.replicas
                continue
            here = slice(self.fleet.columns.start, self.fleet.columns.stop) if there.shape[1] > 1 else slice(None)
            shares = torch.from_numpy((there / there.sum(0).clip(min=1))[:, here]).to(w)  # of cells in the mean
            shares = shares[list(self.fleet.rows)].view(len(w), 1, w.shape[2], *[1] * (w.dim() - 3))
            mean = self.comm.all_reduce((w * shares).sum(0), self.mesh.column(self.comm.rank))
            total += ((w - mean).square() * shares).sum(dtype=torch.float64)
        return math.sqrt(float(self.comm.all_reduce(total)) / self.shape.parameters)

    def table(self) -> pd.DataFrame:
        """All rows, typed as the store has them."""
        rows = pd.DataFrame(self.rows + self.final_rows).drop(columns="run")
        return rows.astype({"metric": "category", "label": "category", "value": float})

    def provenance(self) -> dict:
        """As of a pack, with what processes were lost."""
        lost = {"lost processes": self.events, "undisturbed": self.run.key} if self.events else {}
        return {**super().provenance(), **lost}

    def _surroundings(self) -> dict:
        """As of a pack, and how the run is shared out, on which it depends in which order is summed."""
        shared = {"processes": self.mesh.ranks, "grid": self.mesh.shape, "backend": self.comm.backend}
        return {**super()._surroundings(), **shared}

    def _agree(self, loss: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and norms [R, S + 1] of all cells, once all ranks have theirs; what it cost them goes to all too."""
        shard = self.fleet
        all_norms = torch.zeros(self.run.replicas, self.run.stages + 1, dtype=torch.float64, device=shard.device)
        rows, columns = (slice(cells.start, cells.stop) for cells in (shard.rows, shard.columns))
        all_norms[rows, columns] = norms[:, :-1].double()
        if 0 in shard.columns:
            all_norms[rows, -1] = norms[:, -1].double()
        told = torch.cat([loss.double().view(1), self._own_costs(), all_norms.flatten()])
        loss, costs, norms = self.comm.all_reduce(told).split([1, len(ENTRIES), all_norms.numel()])
        self._charge(costs)
        return loss[0], norms.view_as(all_norms).float()

    def _lr_scale(self, rate: float) -> np.ndarray:
        scale = super()._lr_scale(rate)
        if not self.fleet.outer:  # ends that are elsewhere must not have a rate to themselves
            scale[:, -1] = scale[:, -2]
        return scale

    def _rebuild_all(self, lost: np.ndarray, dying: np.ndarray, new: Sequence[int] = ()) -> None:
        """Note the cells of `lost` [R, S + 1], and let the run's rule rebuild those of `dying`, each where it lies.

        new: ranks that have lost all of theirs with their process.
        """
        cells, spent = [(int(replica), int(stage)) for replica, stage in np.argwhere(dying)], Costs()
        self._unconfirmed = []
        for replica, stage in np.argwhere(lost).tolist():
            self._failure(0, stage, LOST_PROCESS if self.mesh.holders_among(replica, stage, new) else "")
        here = [cell for cell in cells if self.cells.holds(*cell)]
        mine = dict(zip(here, self._lost_cells(0, here, dying), strict=True))
        for cell in mine.values():
            cell.costs = spent
        if self.ends_copies and new:
            self.ends_copies.give_back(new, mine)
        self._erase(0, list(mine.values()))
        for cell in cells:
            holders = self.mesh.holders(*cell)
            for rank in holders:
                if rank == self.comm.rank:
                    self._rebuild(0, mine[cell], counts=rank == holders[0])
                    self.cells.dismiss(cell)
                else:
                    self.cells.serve(cell, rank)
        amounts = [float(spent[name]) for name in ENTRIES] + [float(any(lost.rolled_back for lost in mine.values()))]
        *amounts, back = self._summed(torch.tensor(amounts, dtype=torch.float64, device=self.comm.device)).tolist()
        for name, amount in zip(ENTRIES, amounts, strict=True):
            if amount:
                self.costs[0].add(name, amount)
        self._confirm()
        if back:
            self._roll_back(0)

    def _catch_up(self) -> None:
        """After a rendezvous: bring all ranks to the same place, and rebuild what new ones should hold.

        Who has had the last exchange of a phase is at most this one ahead. The others have their gradients as well
        then, and what replicas exchanged: they finish the phase. Else all begin it anew. Rows and losses come from who
        is ahead.
        """
        places = self.comm.places
        known = [place for place in places if place is not None]
        if not known:
            self.phase = self._first
            return
        ahead, new = max(known), [rank for rank, place in enumerate(places) if place is None]
        if self.phase is not None and self.phase < ahead and self.phase % 3 == self.LEARN:
            if self._undo is None:
                self._update()
            self.phase += 1
        elif self._undo:
            self._take_over(0, self._undo)
            self.losses = self._undo["losses"]
            self.costs = [self._undo["costs"]]
        self._undo = None
        news = self.rows, self.losses, self.norms, self.costs, self.position.tolist(), self.events
        news = self.comm.broadcast(news, places.index(ahead))
        self.rows, losses, norms, costs, position, self.events = news
        self.losses, self.norms = [loss.to(self.fleet.device) for loss in losses], norms.to(self.fleet.device)
        self.costs, self.position = [Costs(entries) for entries in costs], np.array(position)
        self.pending = Costs()
        self.step = (ahead + 1) // 3
        if new:
            before = ("rebuilding", "training", "measuring")[ahead % 3]
            self.events.append({"step": self.step, "before": before, "ranks": new, "mesh": self.mesh.shape})
            self.comm.print_once(f"step {self.step}: rank {', '.join(map(str, new))} was lost and is replaced")
            trace, back = self.traces[0], self.back[0]
            dying = np.zeros(trace.shape[1:], dtype=bool)
            for rank in new:
                rows, columns = self.mesh.cells(rank)
                dying[rows.start : rows.stop, columns.start : columns.stop] = True
                if {0, self.run.stages - 1} & set(columns):
                    dying[rows.start : rows.stop, -1] = True  # embedding, norm and head are one cell
            losing = ahead % 3 == self.LOSE and self.step < self.run.steps
            if (away := self.gone[0]) is not None:
                dying &= ~away[self.step if losing else max(self.step - 1, self.begin)]
            lost = dying | trace[self.step] if losing else dying
            self._rebuild_all(lost, dying | back[self.step] if losing else dying, new)
            ahead += losing
        self.phase = ahead

    def _own_costs(self) -> Tensor:
        """This rank's part of each of `ENTRIES`: what one row of ranks sends is counted for all replicas."""
        first = self.comm.rank < self.mesh.columns
        own = [self.pending[name] * (first if name.startswith("sent") else self.comm.rank == 0) for name in ENTRIES]
        return torch.tensor(own, dtype=torch.float64, device=self.fleet.device)

    def _charge(self, entries: Tensor) -> None:
        """Move what is pending on this rank, summed over all ranks in `entries`, to the costs of all."""
        for name, amount in zip(ENTRIES, entries.tolist(), strict=True):
            if amount or name in self.pending:
                self.costs[0].add(name, amount)
        self.pending = Costs()

    def _agree_to_save(self) -> bool:
        """Whether a checkpoint is due by the clock of rank 0."""
        due = self.comm.rank == 0 and not self.events and time.monotonic() - self._saved > trainer.CHECKPOINT_SECONDS
        return bool(self._summed(float(due)))

    def _summed(self, amount: float | Tensor) -> float | Tensor:
        """The sum over all ranks; of a tensor in place."""
        if isinstance(amount, Tensor):
            return self.comm.all_reduce(amount)
        return float(self._summed(torch.tensor([amount], dtype=torch.float64, device=self.comm.device)))

    def _exchanged(self, i: int) -> Costs:
        return self.pending

    def _frozen(self, scale: np.ndarray) -> None:
        if (gone := self.gone[0]) is not None:
            there = torch.from_numpy(~gone[self.step])
            scale *= resharding.table(there, self.mesh, self.comm.rank).numpy()
            if not self.fleet.outer:
                scale[:, -1] = scale[:, -2]

    def _place(self, replica: int, stage: int) -> tuple[int, int]:
        return self.fleet.place(replica, stage)

    def _moments(self, replica: int, stage: int) -> tuple[Mapping, int]:
        return self.cells.moments(replica, stage)

    def _slow_cells(self, i: int) -> Mapping[str, RemoteSlow]:
        return {kind: RemoteSlow(self.cells, kind) for kind in self.cells.kept}

    def _norm_rows(self, i: int) -> Sequence[int]:
        return range(len(self.norms))

    def _failure_steps(self, i: int) -> list[int]:
        return [row["step"] for row in self.rows if row["metric"] == "failure"]

    def _take_over(self, i: int, state: resharding.State) -> None:
        if "adam" in state and not self.strategy:
            state = state | {"norms": resharding.table(state["norms"], self.mesh, self.comm.rank)}
        super()._take_over(i, state)

    def _losses_by_run(self) -> Tensor:
        losses = torch.stack(self.losses).double()  # [steps], summed over replicas
        losses = (losses if self.strategy else self._summed(losses)).cpu()
        gone, last = self.gone[0], max(self.step, self.begin + 1)
        if gone is None:
            return (losses / self.run.replicas)[:, None]
        return (losses / torch.from_numpy((~gone[last - len(losses) : last, :, -1]).sum(1)))[:, None]

    def _norms_by_stage(self) -> list[list[float]]:
        norms = torch.zeros(self.run.stages, dtype=torch.float64, device=self.fleet.device)
        if self.strategy:
            norms += self.norms[:, :-1].double().sum(0)
        else:
            norms[list(self.fleet.columns)] = self.norms[:, :-1].double().sum(0)
            self._summed(norms)
        there = self._cells_there(0, LAYERS)
        count = self.run.replicas if there is None else torch.from_numpy(there.sum(0).clip(min=1)).to(norms)
        return (norms / count)[:, None].tolist()

    def _put_row(self, row: dict) -> None:
        self._unconfirmed.append(row)

    def _confirm(self) -> None:
        """Count the rows of a phase, now that its exchange is done."""
        self.rows += self._unconfirmed
        self._unconfirmed = []

    def _stream(self) -> list[dict]:
        """On rank 0 the rows that are in `progress`."""
        return self.progress.metrics().to_dict("records") if self.progress else []


def _absent(gone: np.ndarray | None) -> list[int]:
    """The replicas that are away, of cells that are, bool [R, S + 1]."""
    return [] if gone is None else np.flatnonzero(gone[:, -1]).tolist()
