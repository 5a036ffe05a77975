"""One rank's share of a run on many processes, in training.

- a stage that the run's trace kills loses its weights, and its rank rebuilds it from what other ranks send to it. A
  rank whose process is killed can come back as a new one that has lost all its cells; the others repeat the step from
  the weights before it, which they still have: no weight is written until all ranks have their gradients
- copies that a recovery relies on are kept where the stage is, and what sending them would cost is in its costs; only
  where processes can be replaced those of the ends, on which CheckFree+ relies, do lie with another one
- every rank has the same table of metrics as stacked training. Losses and norms for it are summed over all ranks, which
  the methods themselves do not need
- rank 0 keeps checkpoints and final states as stacked training does (`swarmbook.distributed.resharding`), reads those that a run begins
  with, and takes alone the measurements that runs ask for
"""

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from swarmbook.config import RunConfig
from swarmbook.data import tokenization as data
from swarmbook.distributed import resharding
from swarmbook.distributed.communicator import Communicator, LostRank, PendingMessage
from swarmbook.distributed.mesh import Mesh
from swarmbook.distributed.outer import RankOuter
from swarmbook.distributed.pipeline_executor import PipelineExecutor
from swarmbook.distributed.remote_stages import RemoteStages
from swarmbook.distributed.schedule_1f1b import PipelineTask, tasks_of
from swarmbook.distributed.stage_shard import StageShard
from swarmbook.errors import TrainingError
from swarmbook.methods.costs import ENTRIES, Costs
from swarmbook.methods.recovery import RULES, Lost
from swarmbook.methods.routing import in_order, stage_visits
from swarmbook.methods.sync import SYNCS
from swarmbook.records.checkpoint import WorkInProgress
from swarmbook.training import packing, rebuilding, setup, trainer
from swarmbook.training.adam import Adam
from swarmbook.training.device import moved


class RankTrainer:
    """One rank's share of a run in training; `rows` are the metrics, as stacked training has them.

    A step t is three phases: stages that die are rebuilt, all is trained, and it is measured what is due. Of a run with
    a recovery each phase ends in an exchange between all ranks, so that none is more than one exchange ahead. `place`
    counts phases: 3 t + LOSE, 3 t + LEARN, 3 t + MEASURE; the one before the first step measures what it begins with.

    progress: of rank 0, where the run's rows and checkpoints are kept.
    """

    LOSE, LEARN, MEASURE = range(3)

    def __init__(self, run: RunConfig, mesh: Mesh, comm: Communicator, progress: WorkInProgress | None = None):
        self.run, self.mesh, self.comm, self.progress = run, mesh, comm, progress
        self.started, self.seconds = time.monotonic(), 0.0
        self.begin = self.step = self.position = run.start.steps if run.start else 0
        self.place: int | None = None  # until this process has all that belongs to it
        self._first = 3 * self.begin - 1  # the place of whoever has it first
        tokens = data.tokens(run.data, "train", run.tokenizer, run.data_limit)
        self.batches = setup.batches_of(run, tokens)
        domains = run.data, *run.evaluate_on
        self.held_out = {domain: setup.held_out_of(run, domain) for domain in domains}  # now: text may be too short
        self.shape = run.shape(tokens.vocabulary)
        costly = packing.expected_flops([run], self.shape) > packing.COMPILE_FLOPS[comm.device.type] * mesh.ranks
        self.fleet = StageShard(run, self.shape, mesh, comm, "auto" if costly else False)
        self.adam = Adam(self.fleet, run.lr)
        self._round()
        self.rate = setup.rate_of(run)
        self.outer = RankOuter(run, self.fleet, mesh, comm) if SYNCS[run.sync] else None
        self.strategy = RULES[run.recovery]
        # Whether copies of the ends lie with other processes, which is of use only if one can be replaced.
        self.keeps = self.strategy is not None and self.strategy.keeps == "ends" and comm.replaceable
        self.copies: dict[int, list[dict[str, Tensor]]] = {}  # by whose they are; of each replica of this row
        self.kept: resharding.State = {}  # this rank's part of what a strategy keeps, taken every `keep_every` steps
        self.trace = run.failures()
        self.remote = RemoteStages(self.fleet, self.adam, mesh, comm)
        self.norms = torch.ones(run.replicas, run.stages + 1)  # of all cells with a recovery, else of this rank's
        self.rebuilt = np.full(self.adam.steps.shape, -1)  # [r, s + 1], the step that raised a cell's learning rate
        self.own_costs = Costs()  # of this rank
        self.costs = Costs()  # of all ranks together
        self.losses: list[Tensor] = []  # of every step since the last row, summed over replicas: of all with a
        # recovery, else this rank's part
        self.rows: list[dict] = []
        self._tasks: tuple[bytes, list[PipelineTask]] = (b"", [])  # of the last route
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
        elif parent and self.run.branch:
            whole = {"fleet": parent["fleet"]}
        given, copied, news = self.comm.broadcast((whole is not None, kept is not None, news), 0)
        if given:
            self._take_over(resharding.scatter(whole, self.mesh, self.comm))
        if news:
            self.step, self.rows, costs, self.seconds = news
            self.costs, self._first = Costs(costs), 3 * self.step
            self.comm.print_once(f"goes on from its checkpoint at step {self.step}")
        else:
            self._take_copy()
        if copied:
            self.kept = resharding.scatter(kept, self.mesh, self.comm)

    def train(self) -> None:
        """All steps; TrainingError if the loss is not finite any more."""
        broken = False
        while True:
            try:
                if broken:
                    self.comm.rendezvous(self.place)
                    broken = False
                self._take_in()
                self._phases()
                self.finish()
                return
            except LostRank:
                broken = True  # its traceback holds connections, which are to close before all meet again

    def _phases(self) -> None:
        """From where the run is to its last step."""
        phases = self.lose, self.advance, self.measure
        while self.place < 3 * self.run.steps:
            phases[self.place % 3]()
            self.place += 1

    def lose(self) -> None:
        """The stages that the trace kills at the start of the step."""
        if self.trace[self.step].any():
            self._rebuild(self.trace[self.step])

    def advance(self) -> None:
        """One step of training; no weight is written before all ranks have their gradients."""
        run = self.run
        tokens = moved(self.batches[self.position], self.fleet.device)
        self._cells = run.route_at(self.step)
        if self._tasks[0] != self._cells.tobytes():
            self._tasks = self._cells.tobytes(), tasks_of(self._cells, self.mesh)
        loss = PipelineExecutor(self.fleet, tokens, back=True).run(self._tasks[1], self.comm)
        norms = self.fleet.clip(run.clip)
        if self.outer:
            self.outer.average_gradients(self.position, self.own_costs)
        if self.strategy:
            loss, norms = self._agree(loss, norms)
        self.losses.append(loss)
        self.norms = norms
        self._update()

    def measure(self) -> None:
        """What is due after a step, or before the first: training loss, validation loss and what goes with it."""
        if self.keeps:
            self._keep_copies()
        run, begins = self.run, self.step == self.begin
        logs = not begins and (self.step % run.log_every == 0 or self.step == run.steps)
        rows = [self._row("training loss", self.log())] if logs else []
        if begins or self.step % run.evaluate_every == 0 or self.step == run.steps:
            rows += self.evaluate()
        due = False
        if logs or ((rows or self.keeps) and self.strategy):  # who is lost before it has this measures again
            due = self._agree_to_save()
        self.rows += rows
        if logs:
            self.comm.print_once(f"step {self.step}: loss {rows[0]['value']:.3f}")
            self.losses = []
            if due:
                self.save()

    def log(self) -> float:
        """The training loss since the last row."""
        losses = torch.stack(self.losses).double()  # [steps]
        losses = (losses if self.strategy else self.comm.all_reduce(losses)) / self.run.replicas
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            failures = [row["step"] for row in self.rows if row["metric"] == "failure"]
            step = self.step - len(losses) + int(bad[0])
            raise TrainingError(rebuilding.why_diverged(self.run, step, failures))
        return float(losses.mean())

    def evaluate(self) -> list[dict]:
        """Validation loss in order, whatever the route; how far replicas are apart; gradient norms by stage."""
        run = self.run
        rows = [self._row("validation loss", self.loss(run.data))]
        if run.replicas > 1:
            rows.append(self._row("replica spread", self.spread()))
        if self.step == self.begin:
            return rows
        norms = torch.zeros(run.stages, dtype=torch.float64, device=self.fleet.device)
        if self.strategy:
            norms += self.norms[:, :-1].double().sum(0)
        else:
            norms[list(self.fleet.columns)] = self.norms[:, :-1].double().sum(0)
            self.comm.all_reduce(norms)
        return rows + [self._row("gradient norm", float(n), stage=s) for s, n in enumerate(norms / run.replicas, 1)]

    def _agree(self, loss: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and norms [R, S + 1] of all cells, once all ranks have theirs; what it cost them goes to all too."""
        run, block = self.run, self.fleet
        all_norms = torch.zeros(run.replicas, run.stages + 1, dtype=torch.float64, device=block.device)
        rows, columns = (slice(cells.start, cells.stop) for cells in (block.rows, block.columns))
        all_norms[rows, columns] = norms[:, :-1].double()
        if 0 in block.columns:
            all_norms[rows, -1] = norms[:, -1].double()
        told = torch.cat([loss.double().view(1), self._own_costs_in_order(), all_norms.flatten()])
        loss, costs, norms = self.comm.all_reduce(told).split([1, len(ENTRIES), all_norms.numel()])
        self._charge(costs)
        return loss[0], norms.view_as(all_norms).float()

    def _update(self) -> None:
        """Write the weights after a step."""
        run, rate = self.run, self.rate(self.position)
        if self.strategy:
            half_life = run.boost_half_life or np.inf
            self.adam.lr_scale[:] = rebuilding.boosted(self.rebuilt, self.step, run.lr_boost, half_life)
            if not self.fleet.outer:  # ends that are elsewhere must not have a rate to themselves
                self.adam.lr_scale[:, -1] = self.adam.lr_scale[:, -2]
        self.adam.step(rate)
        self._round()
        self.step += 1
        self.position += 1
        if self.outer:
            self.outer.step(self.position, self.own_costs)
        rebuilding.count_step(run, self.shape, stage_visits(self._cells, run.stages), self.costs)
        self._take_copy()

    def _take_copy(self) -> None:
        """Copy what the run's strategy keeps every so many steps of progress, and what it begins with."""
        run, strategy, begins = self.run, self.strategy, self.step == self.begin
        if strategy is None or strategy.keeps is None or strategy.always:
            return
        if not begins and self.position % run.keep_every:
            return
        self.kept = self.state() if strategy.keeps == "run" else {"fleet": self.fleet.state_dict()}
        own = torch.tensor(
            [rebuilding.copied_bytes(self.kept, strategy)], dtype=torch.float64, device=self.fleet.device
        )
        self.kept["bytes"] = int(self.comm.all_reduce(own))
        self.costs["stored"] = max(self.costs["stored"], self.kept["bytes"])
        if not begins:
            self.costs.add("sent in training", self.kept["bytes"])

    def _keep_copies(self) -> None:
        """Send this rank's part of the ends to its keeper, and take those that it keeps."""
        me, coming = self.comm.rank, {}
        for rank in self.mesh.holders(self.fleet.rows[0], self.run.stages):
            keeper = self.mesh.keeper(rank)
            if rank == me and keeper is not None:
                self._send_ends([self.fleet.ends(r) for r in range(self.fleet.replicas)], keeper)
            elif keeper == me:
                coming[rank] = [self._receive_ends(rank, rank) for _ in self.fleet.rows]
        self.copies = {
            rank: [{name: message.read() for name, message in messages.items()} for messages in each]
            for rank, each in coming.items()
        }
        self.comm.flush()

    def _send_ends(self, parts: Sequence[dict[str, Tensor]], to: int) -> None:
        for part in parts:
            for tensor in part.values():
                self.comm.send(tensor, to)

    def _receive_ends(self, owner: int, source: int) -> dict[str, PendingMessage]:
        """The part of a replica's ends that belongs to `owner`, on its way from `source`."""
        likes = {
            name: torch.empty(self.shape.ends_shapes[name], device=self.comm.device) for name in self.mesh.ends(owner)
        }
        return {name: self.comm.receive(like, source) for name, like in likes.items()}

    def _return_copies(self, new: Sequence[int], lost: Mapping[tuple[int, int], Lost]) -> None:
        """Send new ranks what is left of their ends, for the rule; what the other rank of a row has is still there."""
        me, keeper = self.comm.rank, self.mesh.keeper(self.comm.rank)
        for rank in new:
            if self.mesh.keeper(rank) == me and me not in new:
                self.comm.send(torch.tensor([len(self.copies.get(rank, []))], device=self.comm.device), rank)
                self._send_ends(self.copies.get(rank, []), rank)
        returned: list[dict[str, PendingMessage]] = []
        if me in new and keeper is not None and keeper not in new:
            like = torch.zeros(1, dtype=torch.int64, device=self.comm.device)
            count = int(self.comm.receive(like, keeper).read())
            returned = [self._receive_ends(me, keeper) for _ in range(count)]
        for replica in self.fleet.rows:
            ends = lost.get((replica, self.run.stages))
            if ends is not None and me in new:
                messages = returned[replica - self.fleet.rows.start] if returned else {}
                ends.kept = {name: message.read() for name, message in messages.items()} or None
            elif ends is not None and set(self.mesh.row(replica)) & set(new):
                ends.kept = {name: weight.clone() for name, weight in ends.weights.items()}
        self.comm.flush()

    def _rebuild(self, dying: np.ndarray, new: Sequence[int] = ()) -> None:
        """Lose the cells of `dying` [R, S + 1], and let the run's rule rebuild them, each where it lies.

        new: ranks that have lost all of theirs with their process.
        """
        stages, costs = self.run.stages, Costs()
        cells = [(int(replica), int(stage)) for replica, stage in np.argwhere(dying)]
        rows = [self._row("failure", 1.0, stage=(stage + 1) % (stages + 1)) for _, stage in cells]
        mine = {cell: self._lost(*cell, dying, costs) for cell in cells if self.remote.holds(*cell)}
        if self.keeps and new:
            self._return_copies(new, mine)
        for lost in mine.values():  # from here on nothing of a dead stage can be read
            for weight in lost.weights.values():
                weight.fill_(float("nan"))
        for cell in cells:
            for rank in self.mesh.holders(*cell):
                if rank == self.comm.rank:
                    self._apply(mine[cell])
                    self.remote.dismiss(cell[0])
                else:
                    self.remote.serve(cell[0], rank)
        spent = [float(costs[name]) for name in ENTRIES] + [float(any(lost.rolled_back for lost in mine.values()))]
        spent = torch.tensor(spent, dtype=torch.float64, device=self.comm.device)
        *spent, back = self.comm.all_reduce(spent).tolist()
        for name, amount in zip(ENTRIES, spent, strict=True):
            if amount:
                self.costs.add(name, amount)
        self.rows += rows
        if back:
            before = self.position
            self._take_over(self.kept)
            self.costs.add("sent on failure", self.kept["bytes"])
            self.costs.add("steps repeated", before - self.position)

    def _lost(self, replica: int, stage: int, dying: np.ndarray, costs: Costs) -> Lost:
        """A lost cell that this rank holds, as its rule sees it."""
        run = self.run
        dead = frozenset(np.flatnonzero(dying[replica]).tolist())
        rng = run.rng("recovery", self.step, replica, stage)
        lost = Lost(self.remote, replica, stage, dead, self.norms, rng, run.clip, moments=run.moments, costs=costs)
        kept, place = self.kept.get("fleet", {}), self.fleet.place(replica, stage)
        lost.kept = rebuilding.surviving_copy(self.strategy, lost, kept, place)
        return lost

    def _apply(self, lost: Lost) -> None:
        """Rebuild a cell, or the part of the ends that is here."""
        stages, place = self.run.stages, self.fleet.place(lost.replica, lost.stage)
        self.strategy.rule(lost)
        if lost.rolled_back:
            return
        if self.comm.rank == self.mesh.holders(lost.replica, lost.stage)[0]:
            lost.costs.add("rebuilt", 1)
            if self.strategy.covers(lost.stage, stages) and lost.kept is None:
                lost.costs.add("not recoverable", 1)
        if lost.boosted:
            self.rebuilt[place] = self.step
        rebuilding.set_moments(self.adam, place, lost, partial(self.remote.moments, lost.replica))

    def _take_in(self) -> None:
        """After a meeting: bring all ranks to the same place, and rebuild what new ones should hold.

        Who has had the last exchange of a phase is at most this one ahead. The others have their gradients as well
        then: they finish the phase. Else all begin it anew. Rows and losses come from who is ahead.
        """
        places = self.comm.places
        known = [place for place in places if place is not None]
        if not known:
            self.place = self._first
            return
        ahead, new = max(known), [rank for rank, place in enumerate(places) if place is None]
        if self.place is not None and self.place < ahead and self.place % 3 == self.LEARN:
            self._update()
            self.place += 1
        news = self.rows, self.losses, self.norms, self.costs, self.position
        news = self.comm.broadcast(news, places.index(ahead))
        self.rows, self.losses, self.norms, self.costs, self.position = news
        self.own_costs = Costs()
        self.step = (ahead + 1) // 3
        if new:
            self.comm.print_once(f"step {self.step}: rank {', '.join(map(str, new))} was lost and is replaced")
            dying = np.zeros(self.trace.shape[1:], dtype=bool)
            for rank in new:
                rows, columns = self.mesh.cells(rank)
                dying[rows.start : rows.stop, columns.start : columns.stop] = True
                if {0, self.run.stages - 1} & set(columns):
                    dying[rows.start : rows.stop, -1] = True  # embedding, norm and head are one cell
            losing = ahead % 3 == self.LOSE and self.step < self.run.steps
            self._rebuild(dying | self.trace[self.step] if losing else dying, new)
            ahead += losing
        self.place = ahead

    def _own_costs_in_order(self) -> Tensor:
        """This rank's part of each of `ENTRIES`: what one row of ranks sends is counted for all replicas."""
        first = self.comm.rank < self.mesh.columns
        own = [self.own_costs[name] * (first if name.startswith("sent") else self.comm.rank == 0) for name in ENTRIES]
        return torch.tensor(own, dtype=torch.float64, device=self.fleet.device)

    def _charge(self, entries: Tensor) -> None:
        """Move what is in this rank's costs, summed over all ranks in `entries`, to the costs of all."""
        for name, amount in zip(ENTRIES, entries.tolist(), strict=True):
            if amount or name in self.own_costs:
                self.costs.add(name, amount)
        self.own_costs = Costs()

    def _agree_to_save(self) -> bool:
        """Whether a checkpoint is due by the clock of rank 0."""
        due = self.comm.rank == 0 and time.monotonic() - self._saved > trainer.CHECKPOINT_SECONDS
        return bool(self.comm.all_reduce(torch.tensor([float(due)], device=self.comm.device)))

    def save(self) -> None:
        """Keep a checkpoint from which stacked training could go on as well; rank 0 writes it."""
        self._charge(self.comm.all_reduce(self._own_costs_in_order()))
        whole = resharding.gather(self.state(), self.mesh, self.comm)
        kept = resharding.gather(self.kept, self.mesh, self.comm) if self.kept else {}
        if whole:
            self.progress.append({"run": 0, **row} for row in self.rows[self._streamed :])
            self._streamed = len(self.rows)
            self.progress.save(rebuilding.checkpoint_of(whole, self.costs, kept, self._elapsed()), self.step)
        self._saved = time.monotonic()

    def state(self) -> resharding.State:
        """This rank's part of what `Pack.state` gives; with a recovery it has the norms of all cells."""
        return {
            "fleet": self.fleet.state_dict(),
            "adam": self.adam.state_dict(),
            "norms": self.norms.clone(),
            "rebuilt": torch.from_numpy(self.rebuilt.copy()),
            "position": self.position,
            "outer": self.outer.state_dict() if self.outer else None,
        }

    def _take_over(self, state: resharding.State) -> None:
        """Go on from this rank's part of a state; from weights alone as if the run had been initialised with them."""
        self.fleet.load_state_dict(state["fleet"])
        if "adam" in state:
            self.adam.load_state_dict(state["adam"])
            norms = state["norms"] if self.strategy else resharding.table(state["norms"], self.mesh, self.comm.rank)
            self.norms, self.rebuilt = norms.to(self.fleet.device), state["rebuilt"].numpy().copy()
            self.position = state["position"]
        else:
            self._round()
        if self.outer:
            self.outer.load_state_dict(state.get("outer"))

    def loss(self, domain: str) -> float:
        """Mean loss of all replicas on the held-out sequences of a domain."""
        run, held_out = self.run, self.held_out[domain]  # [1, N, T + 1]
        M = math.gcd(run.microbatches, held_out.shape[1])
        tokens = torch.as_tensor(held_out, device=self.fleet.device).unflatten(1, (M, -1))
        tokens = tokens.expand(run.replicas, *tokens.shape[1:])  # [R, M, B, T + 1]
        tasks = tasks_of(in_order(run.replicas, run.stages, M, run.rng("route")), self.mesh, back=False)
        executor = PipelineExecutor(self.fleet, tokens, back=False)
        nats = self.comm.all_reduce(executor.run(tasks, self.comm).double())
        return float(nats) / (run.replicas * executor.count)

    def spread(self) -> float:
        """As `Pack.spread`."""
        total = torch.zeros(1, dtype=torch.float64, device=self.fleet.device)
        for w in self.fleet.replica_views(range(self.fleet.replicas)).values():
            mean = self.comm.all_reduce(w.sum(0), self.mesh.column(self.comm.rank)) / self.run.replicas
            total += (w - mean).square().sum(dtype=torch.float64) / self.run.replicas
        return math.sqrt(float(self.comm.all_reduce(total)) / self.shape.parameters)

    def finish(self) -> None:
        """Losses on further domains, and the costs of the run."""
        domains = dict.fromkeys(self.run.evaluate_on)
        rows = [self._row("domain loss", self.loss(domain), label=domain) for domain in domains]
        self._charge(self.comm.all_reduce(self._own_costs_in_order()))
        self.rows += rows + [self._row("ledger", amount, label=name) for name, amount in self.costs.items()]
        if self.run.measurements:
            self._take_measurements()

    def _take_measurements(self) -> None:
        """Rank 0 takes the measurements that the run asks for, in a Fleet of the whole run."""
        self.save()
        if self.progress:
            trainer.Pack([self.run], self.progress, str(self.comm.device)).take_measurements()
            self.rows += self._stream()[self._streamed :]

    def _stream(self) -> list[dict]:
        """On rank 0 the rows that are in `progress`."""
        metrics = self.progress.metrics() if self.progress else pd.DataFrame()
        return metrics.drop(columns="run", errors="ignore").to_dict("records")

    def table(self) -> pd.DataFrame:
        """All rows, typed as the store has them."""
        return pd.DataFrame(self.rows).astype({"metric": "category", "label": "category", "value": float})

    def provenance(self) -> dict:
        run, seconds = self.run, self._elapsed()
        return {
            **setup.versions(self.fleet.device, bool(self.fleet.compiled)),
            "packed": 1,
            "processes": self.mesh.ranks,
            "grid": f"{self.mesh.rows}x{self.mesh.columns}",
            "backend": self.comm.backend,
            "seconds": round(seconds, 1),
            "tokens_per_second": round((run.steps - self.begin) * run.tokens_per_step / seconds),
        }

    def _elapsed(self) -> float:
        """Seconds of training, with those until the checkpoint that it goes on from."""
        return self.seconds + time.monotonic() - self.started

    def _row(self, metric: str, value: float, stage: int = 0, label: str = "") -> dict:
        return {"step": self.step, "metric": metric, "stage": stage, "label": label, "value": value}

    def _round(self) -> None:
        if self.run.storage == "bf16":
            self.adam.round_to_bf16(range(self.fleet.replicas))
