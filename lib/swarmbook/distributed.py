"""One run on many processes: `torchrun --nproc-per-node=N -m swarmbook.distributed RUN.json`.

- a `Grid` says which rank holds which cells; a `Passage` takes microbatches through them
- everything that is drawn (weights, batches, routes, matchings) follows from the run's seed, so that all ranks draw the
  same without a message, and losses are those of the stacked Fleet to rounding
- what replicas exchange is sent rank to rank within a group, and all-reduced where the method connects all replicas
- a stage that the run's trace kills loses its weights, and its rank rebuilds it from what other ranks send to it. With
  `--replace`, a rank whose process is killed comes back as a new one that has lost all its cells; the others repeat the
  step from the weights before it, which they still have: no weight is written until all ranks have their gradients
- every rank has the same table of metrics as stacked training, and rank 0 writes it once the run is finished. Losses
  and norms for that table are summed over all ranks, which the methods themselves do not need
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from swarmbook import data
from swarmbook import train as training
from swarmbook.churn import trace
from swarmbook.config import RunConfig, run_config
from swarmbook.device import device_of, moved
from swarmbook.errors import ConfigError, DataError, StoreError, TrainingError
from swarmbook.grid import Grid, grid_of
from swarmbook.ledger import ENTRIES, Ledger, flops
from swarmbook.links import Links
from swarmbook.network import PLACES, Network
from swarmbook.optim import Adam
from swarmbook.papers import papers_folder
from swarmbook.passage import Block, Passage, Work, works_of
from swarmbook.peers import Letter, LostRank, Peers, world
from swarmbook.recovery import RULES, Lost, Strategy
from swarmbook.replacement import Row, keep_up
from swarmbook.route import in_order, route_of, stage_visits
from swarmbook.store import open_store
from swarmbook.sync import SYNCS, Exchange, Outer, groups_of


@dataclass
class Meeting(Exchange):
    """An exchange of replicas on several ranks: `tensors` are those of one, `average` asks the others for theirs."""

    average: Callable[[Tensor], Tensor] | None = None

    @property
    def size(self) -> int:
        return super().size or 1  # of what this rank has no part in; rules divide by it

    def mean(self, tensor: Tensor) -> Tensor:
        return self.average(tensor)

    def send(self, copies: float, hops: int, early: float = 0) -> None:
        if super().size:
            super().send(copies, hops, early)
        else:
            self.ledger.add("serial hops", hops)


class SharedOuter(Outer):
    """The outer optimizer of a run for the cells of one rank."""

    def __init__(self, run: RunConfig, block: Block, grid: Grid, peers: Peers):
        super().__init__(run, block, range(block.replicas))
        self.block, self.grid, self.peers = block, grid, peers
        self._column = grid.column(peers.rank)

    def _exchange(self, theta: dict, phi: dict, delta: dict, step: int, ledger: Ledger) -> None:
        run = self.run
        groups = groups_of(run, step)
        consensus = run.outer_lr if run.consensus is None else run.consensus
        tensors = [(w, phi.get(name), delta.get(name)) for name, w in theta.items()]
        late = run.delay > 0 and not self.method.gradients
        meeting = Meeting(tensors, groups, run.outer_momentum, run.outer_lr, consensus, run.density, late, ledger)
        meeting.average = (lambda x: self._met(x, groups)) if self.method.groups else self._of_all
        self.method.rule(meeting)
        if run.storage == "bf16":
            for tensor in (*theta.values(), *phi.values(), *delta.values()):
                tensor.copy_(tensor.bfloat16())

    def _fragment(self, weights: dict, f: int) -> dict:
        F = self.run.fragments
        ends = f == F - 1
        stages = slice((f - self.block.columns.start) % F, None, F)
        return {
            name: w[:, :, stages] if name.startswith("layers.") else w
            for name, w in weights.items()
            if ends or name.startswith("layers.")
        }

    def _of_all(self, tensor: Tensor) -> Tensor:
        """The mean over all replicas, for each of ours [n, ...]: an all-reduce."""
        total = self.peers.sum(tensor.sum(0), self._column)
        return (total / self.run.replicas).expand_as(tensor).clone()

    def _met(self, tensor: Tensor, groups: np.ndarray) -> Tensor:
        """The mean over the group of each of our replicas [n, ...]: rank to rank, and nobody else takes part."""
        if not tensor.numel():
            return tensor.clone()
        me, first = self.peers.rank, self.block.rows.start
        means = torch.empty_like(tensor)
        for group in groups.tolist():
            ranks = [self.grid.rank(r, self.block.columns.start) for r in group]
            if me not in ranks:
                continue
            parts: list[Tensor | Letter] = []
            for r, rank in zip(group, ranks, strict=True):
                if rank != me:
                    parts.append(self.peers.receive(tensor[0], rank))
                    continue
                parts.append(tensor[r - first])
                for to in sorted(set(ranks) - {me}):
                    self.peers.send(tensor[r - first], to)
            parts = [part.read() if isinstance(part, Letter) else part for part in parts]
            means[[r - first for r, rank in zip(group, ranks, strict=True) if rank == me]] = torch.stack(parts).mean(0)
        self.peers.flush()
        return means


class Share:
    """One rank's share of a run in training; `rows` are the metrics, as stacked training has them.

    A step t is three phases: stages that die are rebuilt, all is trained, and it is measured what is due. Of a run with
    a recovery each phase ends in an exchange between all ranks, so that none is more than one exchange ahead. `place`
    counts phases: 3 t + LOSE, 3 t + LEARN, 3 t + MEASURE; -1, before step 0, measures the initial weights.
    """

    LOSE, LEARN, MEASURE = range(3)

    def __init__(self, run: RunConfig, grid: Grid, peers: Peers):
        self.run, self.grid, self.peers = run, grid, peers
        self.step, self.started = 0, time.monotonic()
        self.place: int | None = None  # until this process has all that belongs to it
        tokens = data.tokens(run.data, "train", run.tokenizer, run.data_limit)
        self.batches = training.batches_of(run, tokens)
        self.shape = training.shape_of(run, tokens.vocabulary)
        costly = training.expected_flops([run], self.shape) > training.COMPILE_FLOPS[peers.device.type] * grid.ranks
        self.block = Block(run, self.shape, grid, peers, "auto" if costly else False)
        self.adam = Adam(self.block, run.lr)
        self._round()
        self.rate = training.rate_of(run)
        self.outer = SharedOuter(run, self.block, grid, peers) if SYNCS[run.sync] else None
        self.strategy = RULES[run.recovery]
        # Whether copies of the ends lie with other processes, which is of use only if one can be replaced.
        self.keeps = self.strategy is not None and self.strategy.keeps == "ends" and peers.replaceable
        self.copies: dict[int, list[dict[str, Tensor]]] = {}  # by whose they are; of each replica of this row
        self.trace = trace(run)
        self.row = Row(self.block, self.adam, grid, peers)
        self.norms = torch.ones(run.replicas, run.stages + 1)  # of all cells with a recovery, else of this rank's
        self.rebuilt = np.full(self.adam.steps.shape, -1)  # [r, s + 1], the step that raised a cell's learning rate
        self.ledger = Ledger()  # of this rank
        self.costs = Ledger()  # of all ranks together
        self.losses: list[Tensor] = []  # of every step since the last row, summed over replicas: of all with a
        # recovery, else this rank's part
        self.rows: list[dict] = []
        self._works: tuple[bytes, list[Work]] = (b"", [])  # of the last route

    def train(self) -> None:
        """All steps; TrainingError if the loss is not finite any more."""
        broken = False
        while True:
            try:
                if broken:
                    self.peers.meet(self.place)
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
        tokens = moved(self.batches[self.step], self.block.device)
        self._cells = route_of(run, self.step)
        if self._works[0] != self._cells.tobytes():
            self._works = self._cells.tobytes(), works_of(self._cells, self.grid)
        loss = Passage(self.block, tokens, back=True).through(self._works[1], self.peers)
        norms = self.block.clip(run.clip)
        if self.outer:
            self.outer.average_gradients(self.step, self.ledger)
        if self.strategy:
            loss, norms = self._agree(loss, norms)
        self.losses.append(loss)
        self.norms = norms
        self._update()

    def measure(self) -> None:
        """What is due after a step, or before the first: training loss, validation loss and what goes with it."""
        if self.keeps:
            self._keep_copies()
        logs = self.step and (self.step % self.run.log_every == 0 or self.step == self.run.steps)
        rows = [self._row("training loss", self.log())] if logs else []
        if self.step % self.run.evaluate_every == 0 or self.step == self.run.steps:
            rows += self.evaluate()
        if (rows or self.keeps) and self.strategy:
            self.peers.sum(torch.zeros(1, device=self.peers.device))  # who is lost before it has all measure again
        self.rows += rows
        if logs:
            print_once(self.peers, f"step {self.step}: loss {rows[0]['value']:.3f}")
            self.losses = []

    def log(self) -> float:
        """The training loss since the last row."""
        losses = torch.stack(self.losses).double()  # [steps]
        losses = (losses if self.strategy else self.peers.sum(losses)) / self.run.replicas
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            step = self.step - len(losses) + int(bad[0])
            recent = np.flatnonzero(self.trace[max(0, step - 20) : step + 1].any((1, 2)))
            cause = (
                f"a stage was rebuilt by {self.run.recovery!r} shortly before"
                if len(recent) or any(row["metric"] == "failure" and row["step"] > step - 20 for row in self.rows)
                else f"the learning rate {self.run.lr} is probably too high; try {self.run.lr / 3:.1g}, or a warm-up"
            )
            raise TrainingError(f"run {self.run.key}: the loss is not finite from step {step} on; {cause}")
        return float(losses.mean())

    def evaluate(self) -> list[dict]:
        """Validation loss in order, whatever the route; how far replicas are apart; gradient norms by stage."""
        run = self.run
        rows = [self._row("validation loss", self.loss(run.data))]
        if run.replicas > 1:
            rows.append(self._row("replica spread", self.spread()))
        if self.step == 0:
            return rows
        norms = torch.zeros(run.stages, dtype=torch.float64, device=self.block.device)
        if self.strategy:
            norms += self.norms[:, :-1].double().sum(0)
        else:
            norms[list(self.block.columns)] = self.norms[:, :-1].double().sum(0)
            self.peers.sum(norms)
        return rows + [self._row("gradient norm", float(n), stage=s) for s, n in enumerate(norms / run.replicas, 1)]

    def _agree(self, loss: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and norms [R, S + 1] of all cells, once all ranks have theirs; what it cost them goes to all too."""
        run, block = self.run, self.block
        all_norms = torch.zeros(run.replicas, run.stages + 1, dtype=torch.float64, device=block.device)
        rows, columns = (slice(cells.start, cells.stop) for cells in (block.rows, block.columns))
        all_norms[rows, columns] = norms[:, :-1].double()
        if 0 in block.columns:
            all_norms[rows, -1] = norms[:, -1].double()
        parts = loss.double().view(1), self._own_costs(), all_norms.flatten()
        loss, costs, norms = self.peers.sum(torch.cat(parts)).split([1, len(ENTRIES), all_norms.numel()])
        self._charge(costs)
        return loss[0], norms.view_as(all_norms).float()

    def _update(self) -> None:
        """Write the weights after a step."""
        run, rate = self.run, self.rate(self.step)
        if self.strategy:
            half_life = run.boost_half_life or np.inf
            self.adam.lr_scale[:] = training.boosted(self.rebuilt, self.step, run.lr_boost, half_life)
            if not self.block.outer:  # ends that are elsewhere must not have a rate to themselves
                self.adam.lr_scale[:, -1] = self.adam.lr_scale[:, -2]
        self.adam.step(rate)
        self._round()
        self.step += 1
        if self.outer:
            self.outer.step(self.step, self.ledger)
        share = stage_visits(self._cells, run.stages) / (run.replicas * run.microbatches * run.stages)
        self.costs.add("training FLOPs", 3 * flops(self.shape, run.tokens_per_step, run.sequence, share=share))
        if self.strategy and self.strategy.holders:
            size = run.replicas * len(self.strategy.holders) * self._ends_bytes()
            self.costs["stored"] = size
            self.costs.add("sent in training", size)

    def _keep_copies(self) -> None:
        """Send this rank's part of the ends to its keeper, and take those that it keeps."""
        me, coming = self.peers.rank, {}
        for rank in self.grid.holders(self.block.rows[0], self.run.stages):
            keeper = self.grid.keeper(rank)
            if rank == me and keeper is not None:
                self._send_ends([self.block.ends(r) for r in range(self.block.replicas)], keeper)
            elif keeper == me:
                coming[rank] = [self._receive_ends(rank, rank) for _ in self.block.rows]
        self.copies = {
            rank: [{name: letter.read() for name, letter in letters.items()} for letters in each]
            for rank, each in coming.items()
        }
        self.peers.flush()

    def _send_ends(self, parts: Sequence[dict[str, Tensor]], to: int) -> None:
        for part in parts:
            for tensor in part.values():
                self.peers.send(tensor, to)

    def _receive_ends(self, owner: int, source: int) -> dict[str, Letter]:
        """The part of a replica's ends that belongs to `owner`, on its way from `source`."""
        first, last = owner % self.grid.columns == 0, (owner + 1) % self.grid.columns == 0
        shapes = self.shape.ends_shapes
        return {
            name: self.peers.receive(torch.empty(shapes[name], device=self.peers.device), source)
            for name in ["embedding"] * first + ["norm", "head"] * last
        }

    def _return_copies(self, new: Sequence[int], lost: Mapping[tuple[int, int], Lost]) -> None:
        """Send new ranks what is left of their ends, for the rule; what the other rank of a row has is still there."""
        me, keeper = self.peers.rank, self.grid.keeper(self.peers.rank)
        for rank in new:
            if self.grid.keeper(rank) == me and me not in new:
                self.peers.send(torch.tensor([len(self.copies.get(rank, []))], device=self.peers.device), rank)
                self._send_ends(self.copies.get(rank, []), rank)
        returned: list[dict[str, Letter]] = []
        if me in new and keeper is not None and keeper not in new:
            like = torch.zeros(1, dtype=torch.int64, device=self.peers.device)
            count = int(self.peers.receive(like, keeper).read())
            returned = [self._receive_ends(me, keeper) for _ in range(count)]
        for replica in self.block.rows:
            ends = lost.get((replica, self.run.stages))
            if ends is not None and me in new:
                letters = returned[replica - self.block.rows.start] if returned else {}
                ends.kept = {name: letter.read() for name, letter in letters.items()} or None
            elif ends is not None and set(self.grid.row(replica)) & set(new):
                ends.kept = {name: weight.clone() for name, weight in ends.weights.items()}
        self.peers.flush()

    def _rebuild(self, dying: np.ndarray, new: Sequence[int] = ()) -> None:
        """Lose the cells of `dying` [R, S + 1], and let the run's rule rebuild them, each where it lies.

        new: ranks that have lost all of theirs with their process.
        """
        stages, costs = self.run.stages, Ledger()
        cells = [(int(replica), int(stage)) for replica, stage in np.argwhere(dying)]
        rows = [self._row("failure", 1.0, stage=(stage + 1) % (stages + 1)) for _, stage in cells]
        mine = {cell: self._lost(*cell, dying, costs) for cell in cells if self.row.holds(*cell)}
        if self.keeps and new:
            self._return_copies(new, mine)
        for lost in mine.values():  # from here on nothing of a dead stage can be read
            for weight in lost.weights.values():
                weight.fill_(float("nan"))
        for cell in cells:
            for rank in self.grid.holders(*cell):
                if rank == self.peers.rank:
                    self._apply(mine[cell])
                    self.row.dismiss(cell[0])
                else:
                    self.row.serve(cell[0], rank)
        spent = torch.tensor([float(costs[name]) for name in ENTRIES], dtype=torch.float64, device=self.peers.device)
        for name, amount in zip(ENTRIES, self.peers.sum(spent).tolist(), strict=True):
            if amount:
                self.costs.add(name, amount)
        self.rows += rows

    def _lost(self, replica: int, stage: int, dying: np.ndarray, costs: Ledger) -> Lost:
        """A lost cell that this rank holds, as its rule sees it."""
        run, stages = self.run, self.run.stages
        dead = frozenset(np.flatnonzero(dying[replica]).tolist())
        rng = run.rng("recovery", self.step, replica, stage)
        lost = Lost(self.row, replica, stage, dead, self.norms, rng, run.clip, moments=run.moments, ledger=costs)
        if self.strategy.covers(stage, stages) and not self.strategy.holders_of(stage, stages) & dead:
            lost.kept = {name: weight.clone() for name, weight in lost.weights.items()}
        return lost

    def _apply(self, lost: Lost) -> None:
        """Rebuild a cell, or the part of the ends that is here."""
        stages, place = self.run.stages, self.block.place(lost.replica, lost.stage)
        self.strategy.rule(lost)
        if self.peers.rank == self.grid.holders(lost.replica, lost.stage)[0]:
            lost.ledger.add("rebuilt", 1)
            if self.strategy.covers(lost.stage, stages) and lost.kept is None:
                lost.ledger.add("not recoverable", 1)
        if lost.boosted:
            self.rebuilt[place] = self.step
        training.set_moments(self.adam, place, lost, partial(self.row.moments, lost.replica))

    def _take_in(self) -> None:
        """After a meeting: bring all ranks to the same place, and rebuild what new ones should hold.

        Who has had the last exchange of a phase is at most this one ahead. The others have their gradients as well
        then: they finish the phase. Else all begin it anew. Rows and losses come from who is ahead.
        """
        places = self.peers.places
        known = [place for place in places if place is not None]
        if not known:
            self.place = -1
            return
        ahead, new = max(known), [rank for rank, place in enumerate(places) if place is None]
        if self.place is not None and self.place < ahead and self.place % 3 == self.LEARN:
            self._update()
            self.place += 1
        news = self.peers.tell((self.rows, self.losses, self.norms, self.costs), places.index(ahead))
        self.rows, self.losses, self.norms, self.costs = news
        self.ledger = Ledger()
        self.step = (ahead + 1) // 3
        if new:
            print_once(self.peers, f"step {self.step}: rank {', '.join(map(str, new))} was lost and is replaced")
            dying = np.zeros(self.trace.shape[1:], dtype=bool)
            for rank in new:
                rows, columns = self.grid.cells(rank)
                dying[rows.start : rows.stop, columns.start : columns.stop] = True
                if {0, self.run.stages - 1} & set(columns):
                    dying[rows.start : rows.stop, -1] = True  # embedding, norm and head are one cell
            losing = ahead % 3 == self.LOSE and self.step < self.run.steps
            self._rebuild(dying | self.trace[self.step] if losing else dying, new)
            ahead += losing
        self.place = ahead

    def _own_costs(self) -> Tensor:
        """This rank's part of each of `ENTRIES`: what one row of ranks sends is counted for all replicas."""
        first = self.peers.rank < self.grid.columns
        own = [self.ledger[name] * (first if name.startswith("sent") else self.peers.rank == 0) for name in ENTRIES]
        return torch.tensor(own, dtype=torch.float64, device=self.block.device)

    def _charge(self, entries: Tensor) -> None:
        """Move what is in this rank's ledger, summed over all ranks in `entries`, to the costs of all."""
        for name, amount in zip(ENTRIES, entries.tolist(), strict=True):
            if amount or name in self.ledger:
                self.costs.add(name, amount)
        self.ledger = Ledger()

    def _ends_bytes(self) -> int:
        return 4 * sum(math.prod(size) for size in self.shape.ends_shapes.values())

    def loss(self, domain: str) -> float:
        """Mean loss of all replicas on the held-out sequences of a domain."""
        run, held_out = self.run, training.held_out_of(self.run, domain)  # [1, N, T + 1]
        M = math.gcd(run.microbatches, held_out.shape[1])
        tokens = torch.as_tensor(held_out, device=self.block.device).unflatten(1, (M, -1))
        tokens = tokens.expand(run.replicas, *tokens.shape[1:])  # [R, M, B, T + 1]
        works = works_of(in_order(run.replicas, run.stages, M, run.rng("route")), self.grid, back=False)
        passage = Passage(self.block, tokens, back=False)
        nats = self.peers.sum(passage.through(works, self.peers).double())
        return float(nats) / (run.replicas * passage.count)

    def spread(self) -> float:
        """As `Pack.spread`."""
        total = torch.zeros(1, dtype=torch.float64, device=self.block.device)
        for w in self.block.replica_views(range(self.block.replicas)).values():
            mean = self.peers.sum(w.sum(0), self.grid.column(self.peers.rank)) / self.run.replicas
            total += (w - mean).square().sum(dtype=torch.float64) / self.run.replicas
        return math.sqrt(float(self.peers.sum(total)) / self.shape.parameters)

    def finish(self) -> None:
        """Losses on further domains, and the ledger."""
        domains = dict.fromkeys(self.run.evaluate_on)
        rows = [self._row("domain loss", self.loss(domain), label=domain) for domain in domains]
        self._charge(self.peers.sum(self._own_costs()))
        self.rows += rows + [self._row("ledger", amount, label=name) for name, amount in self.costs.items()]

    def table(self) -> pd.DataFrame:
        """All rows, typed as the store has them."""
        return pd.DataFrame(self.rows).astype({"metric": "category", "label": "category", "value": float})

    def provenance(self) -> dict:
        seconds = time.monotonic() - self.started
        return {
            **training.versions(self.block),
            "packed": 1,
            "processes": self.grid.ranks,
            "grid": f"{self.grid.rows}x{self.grid.columns}",
            "backend": self.peers.backend,
            "seconds": round(seconds, 1),
            "tokens_per_second": round(self.run.steps * self.run.tokens_per_step / seconds),
        }

    def _row(self, metric: str, value: float, stage: int = 0, label: str = "") -> dict:
        return {"step": self.step, "metric": metric, "stage": stage, "label": label, "value": value}

    def _round(self) -> None:
        if self.run.storage == "bf16":
            self.adam.round_to_bf16(range(self.block.replicas))


def train(run: RunConfig, grid: Grid, peers: Peers) -> None:
    """Train a run across all processes, unless it is in the store; rank 0 puts it there."""
    store = open_store() if peers.rank == 0 else None
    begun = any(place is not None for place in peers.places)  # by the others; this process is new
    TRAIN, FINISHED, HELD = range(3)
    with store.claim([run.key]) if store else nullcontext([]) as mine:
        state = TRAIN if mine or not store else FINISHED if store.get(run.key) else HELD
        state = state if begun else int(peers.sum(torch.tensor([state], device=peers.device)))
        if state == HELD:
            raise TrainingError(f"run {run.key} is being trained by another process: wait until it has finished")
        if state == FINISHED:
            print_once(peers, f"run {run.key} is finished already; SWARMBOOK_FRESH=1 trains it anew")
            return
        if not begun:
            print_once(peers, f"run {run.key} over {peers.backend}: {grid}")
        share = Share(run, grid, peers)
        share.train()
        if store:
            record = store.put(run.key, run.model_dump(mode="json"), share.table(), share.provenance())
            print_once(peers, f"written to {record.path}")


def check(run: RunConfig) -> None:
    """ConfigError for a run that cannot be shared out: of what training in one process can do, some is not here."""
    plain = RunConfig.model_fields
    for name in ("start", "branch", "absent", "probes"):
        value = getattr(run, name)
        if value != plain[name].default:
            shown = value.key if isinstance(value, RunConfig) else repr(value)
            raise ConfigError(
                f"{name}={shown} cannot run on many processes: leave it out, or train in one with swarmbook.runs.run"
            )
    able = [name for name, strategy in RULES.items() if strategy is None or _can_be_shared_out(strategy)]
    if run.recovery not in able:
        raise ConfigError(
            f"recovery={run.recovery!r} keeps copies that are not sent between processes: take one of "
            f"{', '.join(able)}, or train in one with swarmbook.runs.run"
        )


def check_replaceable(runs: Sequence[RunConfig]) -> None:
    """ConfigError unless lost processes can be replaced: what only they have must not be missed."""
    if len(runs) != 1:
        raise ConfigError(f"--replace with {len(runs)} runs: give one, as a new process could not tell which it joins")
    (run,) = runs
    sync = SYNCS[run.sync]
    if run.recovery == "none":
        raise ConfigError(f"--replace needs a recovery: {', '.join(RULES)}")
    if sync and not sync.gradients:
        fine = [name for name, method in SYNCS.items() if method is None or method.gradients]
        raise ConfigError(
            f"--replace with sync={run.sync!r}: its slow weights are lost with a process; take one of {', '.join(fine)}"
        )
    if run.moments == "keep":
        raise ConfigError("--replace with moments='keep': they are lost with a process; take 'reset' or 'average'")


def _can_be_shared_out(strategy: Strategy) -> bool:
    """Copies of the ends lie where they are, with the stage beside them; with `--replace`, with the next process."""
    return strategy.keeps is None or (strategy.keeps == "ends" and strategy.always)


def read(name: str) -> RunConfig:
    """The configuration in a JSON file, or that of the recorded or stored run of this key."""
    path = Path(name)
    if path.suffix == ".json" or path.is_file():
        try:
            return run_config(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{name} holds no configuration of a run: {error}") from error
    try:
        record = open_store(sorted(papers_folder().glob("*/runs"))).get(name)
    except ValueError:
        record = None
    if record is None:
        raise ConfigError(f"{name!r} is neither a JSON file nor the key of a run that is recorded or in the store")
    return run_config(**record.config)


def print_once(peers: Peers, text: str) -> None:
    if peers.rank == 0:
        print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Train the runs named on the command line, one after another; the exit status.

    0: all are in the store. 1: a rank was lost, or training cannot go on. 2: wrong usage, found before anything starts.
    """
    options = _parser().parse_args(argv)
    _, ranks = world()
    try:
        runs = [read(name) for name in options.runs]
        for run in runs:
            check(run)
        plans = [grid_of(run, ranks, options.grid) for run in runs]
        if options.replace:
            check_replaceable(runs)
        links = Links(Network.over(options.places, ranks), options.pace, options.weight) if options.places else None
    except (ConfigError, StoreError) as error:
        print(f"swarmbook.distributed: {error}", file=sys.stderr, flush=True)
        return 2
    work = partial(_work, runs, plans, options.timeout, options.replace > 0, links)
    return keep_up(work, options.replace, options.timeout) if options.replace else work()


def _work(
    runs: Sequence[RunConfig], plans: Sequence[Grid], timeout: float, replaceable: bool, links: Links | None
) -> int:
    """Train all runs in this process and its peers; the exit status."""
    device, (rank, _) = device_of("auto"), world()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        if replaceable:  # by default NCCL ends the survivors of a lost rank too
            print("swarmbook.distributed: --replace works over gloo only: hide all GPUs", file=sys.stderr, flush=True)
            return 2
    try:
        with Peers(device, timeout, replaceable, links) as peers:
            for run, grid in zip(runs, plans, strict=True):
                train(run, grid, peers)
    except (TrainingError, DataError, StoreError) as error:
        print(f"rank {rank}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node=N -m swarmbook.distributed",
        description="Train runs on N processes: cells (replica, stage) are shared out in equal rectangles.",
        epilog="Exit status: 0 all runs are in the store, 1 training could not go on, 2 wrong usage.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a RunConfig as JSON file, or the key of a run")
    parser.add_argument(
        "--grid",
        type=_grid,
        metavar="2x2",
        help="ranks along the replicas and along the stages; default: as many as fit along the replicas",
    )
    parser.add_argument(
        "--replace",
        type=int,
        default=0,
        metavar="N",
        help="times that each rank may lose its process and get a new one with rebuilt stages; default: %(default)s",
    )
    parser.add_argument(
        "--places",
        metavar="LIST",
        help=f"messages are as slow as between the places of a list, dealt to ranks in turn: {', '.join(PLACES)}",
    )
    parser.add_argument(
        "--pace", type=float, default=1.0, metavar="S", help="real seconds for a second between places; default: 1"
    )
    parser.add_argument(
        "--weight", type=float, default=1.0, metavar="B", help="bytes between places for a byte sent; default: 1"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        metavar="S",
        help="seconds without a sign of life after which a rank counts as lost; default: %(default)g",
    )
    return parser


def _grid(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no grid such as 2x2")
    return int(rows), int(columns)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    if status == 1:
        os._exit(status)  # a backend that still waits for a lost rank must not hold up the exit
    sys.exit(status)
