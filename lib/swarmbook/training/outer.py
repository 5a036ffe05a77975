"""The outer optimizer: when replicas exchange what, and when the result arrives.

What an exchange does to the tensors is a rule of `swarmbook.methods.sync`. Slow and fast weights are those of NoLoCo
(section 3.2) and DiLoCo (arXiv 2311.08105); fragments, delay and mixing those of Streaming DiLoCo (arXiv 2501.18512).

Serves: the runs of the NoLoCo notebook.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from swarmbook.methods.costs import Costs, bytes_of
from swarmbook.methods.sync import SYNCS, Exchange
from swarmbook.training.stacked_weights import StackedWeights
from swarmbook.training.state_layout import REPLICA_FIRST, of_layers, weights_in

Weights = dict[str, Tensor]  # laid out as REPLICA_FIRST


class OuterCells:
    """What the exchange of a run keeps of one kind, slow weights or a buffer, as recovery rules see stages.

    weights: as of `OuterOptimizer`. fleet: the weights in training, whose rows `first` and so on are the run's.
    """

    def __init__(self, weights: Weights, fleet: StackedWeights, first: int = 0, buffer: bool = False):
        self.kept, self.fleet, self.first, self.buffer, self.shape = weights, fleet, first, buffer, fleet.shape

    def stage(self, replica: int, stage: int) -> Weights:
        """Views of a stage by parameter, laid out like `Fleet.stage`."""
        ends = stage == self.shape.stages
        cell = REPLICA_FIRST.cell(self.kept, replica - self.first, None if ends else stage)
        return {name: tensor[0, 0] if ends else tensor for name, tensor in cell.items()}

    def initialise(self, replica: int, stage: int, seed: int) -> None:
        """Slow weights of a stage that is drawn anew are its weights; a buffer begins at 0."""
        fresh = self.fleet.stage(replica, stage)
        for name, tensor in self.stage(replica, stage).items():
            tensor.zero_() if self.buffer else tensor.copy_(fresh[name])


class OuterOptimizer:
    """The outer optimizer of one run: its slow weights and buffers, and what is on its way between its replicas.

    run: its `swarmbook.config.RunConfig`. rows: where the run's replicas are in the fleet.

    Fragment f of F holds the stages f, f + F, ... and the last fragment the embedding, norm and head too. It is
    exchanged when `sync_every` divides the steps of progress less f * sync_every // F. What is still on its way when a
    run ends does not arrive.

    A replica that is absent from the exchange of a fragment goes on by `rejoin`:

    - "slow": it has crashed. The fast weights of its whole model are lost, with all its steps since they were the slow
      ones. It goes on at once from its slow weights, those before any result that is still on its way. Gossip has no
      slow weights: there an absent replica only misses the averaging
    - "fast": it has crashed, and copies the fast weights of a peer's whole model as they are before the exchange, which
      "sent on failure" counts. The peer is the next replica that is present, by number, and after the last the first
      again. So does a healed replica of torchft, which copies slow weights and all moments as well, and takes part at
      once; ours keeps its own, and takes part again in the next exchange
    - "own": it has not crashed, and keeps its fast weights. So does DiLoCo's paper (arXiv 2311.08105, asynchronous
      communication), where a worker whose outer gradient is dropped goes on from its own parameters

    NoLoCo's paper says nothing of replicas that miss an exchange. What an exchange within a group leads to does not
    reach them. Where a method gives all replicas the same slow weights, these reach them too, and become their fast
    weights when they arrive, as with all others. But with "own" they keep their fast weights, and with "slow" and no
    delay they have none of which `mixing` could keep a share. Adam's moments stay. An exchange from which all are
    absent does not take place, and nobody has crashed.
    """

    def __init__(self, run, fleet: StackedWeights, rows: range):
        self.run, self.method = run, SYNCS[run.sync]
        self.first = 0  # the stage of the run that the fleet begins with
        self.held = range(run.replicas)  # the replicas of the run whose weights are here
        self.theta, self.gradients = fleet.replica_views(rows), fleet.replica_views(rows, gradients=True)
        kept = self.theta if self.method.keeps else {}
        self.phi = {name: w.clone() for name, w in kept.items()}
        self.buffers = {
            kind: {name: w.new_zeros(w.shape) for name, w in self.theta.items()} for kind in self.method.buffers
        }
        # Fragment -> when, and its new fast weights; where replicas can be absent, who is, and the slow weights before.
        self.arriving: dict[int, dict] = {}

    def cells(self, fleet: StackedWeights, first: int = 0) -> dict[str, OuterCells]:
        """Stages as recovery rules see them, of slow weights and of buffers, by kind. Arguments as of `OuterCells`."""
        kinds = {kind: weights for kind, weights in self._kept().items() if weights}
        return {kind: OuterCells(weights, fleet, first, kind != "phi") for kind, weights in kinds.items()}

    def average_gradients(self, step: int, costs: Costs, away: np.ndarray | None = None) -> None:
        """Exchange the gradients of step `step`, counted from 0, if the method works on gradients.

        away: the cells that are away, bool [R, S + 1]; None if none is.
        """
        if self.method.gradients:
            self._exchange(self.gradients, [{}, *self.buffers.values()], step, costs, away)

    def step(self, position: int, costs: Costs, away: np.ndarray | None = None) -> None:
        """Exchange what is due after `position` steps of progress, and mix in what arrives then; away: as above."""
        for f in self.due(position):
            self._begin(f, position, costs, away)
        for f in [f for f, message in self.arriving.items() if message["at"] == position]:
            self._arrive(f, self.arriving.pop(f))

    def due(self, position: int) -> list[int]:
        """The fragments that are exchanged after `position` steps of progress; none if gradients are, in every step."""
        K, F = self.run.sync_every, self.run.fragments
        return [] if self.method.gradients else [f for f in range(F) if (position - f * K // F) % K == 0]

    def _begin(self, f: int, position: int, costs: Costs, away: np.ndarray | None) -> None:
        """Exchange fragment f; replicas that are absent lose their fast weights."""
        run, number = self.run, (position - 1) // self.run.sync_every
        present = run.present_at(number)
        absent = [] if present is None else np.flatnonzero(~present).tolist()
        if len(absent) == run.replicas:
            return
        slow = [self._fragment(weights, f) for weights in (self.phi, *self.buffers.values())]
        message: dict = {"at": position + run.delay}
        if absent:
            if run.rejoin == "slow":
                self._crash(absent)
            elif run.rejoin == "fast":
                self._copy_peers(present, costs)
            message["absent"] = absent
        if present is not None and run.rejoin == "slow" and run.delay:
            message["slow"] = {name: w.clone() for name, w in slow[0].items()}
        message["theta"] = {name: w.clone() for name, w in self._fragment(self.theta, f).items()}
        self._exchange(message["theta"], slow, number, costs, away, f)
        if away is not None:
            message["away"] = away.tolist()
        self.arriving[f] = message

    def _crash(self, replicas: Sequence[int]) -> None:
        """Put the fast weights of these replicas, all fragments, back to their slow weights."""
        rows = self._rows(replicas)
        for f in range(self.run.fragments):
            slow = self._fragment(self.phi, f) | self.arriving.get(f, {}).get("slow", {})
            for name, weight in self._fragment(self.theta, f).items():
                if name in slow:
                    weight[rows] = slow[name][rows]

    def _copy_peers(self, present: np.ndarray, costs: Costs) -> None:
        """Give replicas that are absent the fast weights of their peers; present: bool [N], of whom one is at least."""
        N = self.run.replicas
        sources = {r: next(p % N for p in range(r, r + N) if present[p % N]) for r in np.flatnonzero(~present).tolist()}
        self._copy(sources)
        costs.add("sent on failure", len(sources) * sum(bytes_of({"": w[0]}) for w in self.theta.values()))

    def _copy(self, sources: dict[int, int]) -> None:
        """Copy fast weights between replicas: to each key of `sources` from its value, none of which is a key."""
        for to, source in sources.items():
            for weight in self.theta.values():
                weight[to] = weight[source]

    def _arrive(self, f: int, message: dict) -> None:
        """Mix the new weights of fragment f into the fast ones."""
        run, absent = self.run, self._rows(message.get("absent", ()))
        theta, away = self._fragment(self.theta, f), message.get("away")
        before = {name: weight.clone() for name, weight in theta.items()} if away else {}
        for name, weight in theta.items():
            new, own = message["theta"][name], weight[absent]
            if run.mixing == 0:  # not `lerp_`, which makes NaN of fast weights that are infinite
                weight.copy_(new)
            else:
                weight.lerp_(new, 1 - run.mixing)
            if self.method.groups or run.rejoin == "own":
                weight[absent] = own
            elif run.rejoin == "slow" and not run.delay:
                weight[absent] = new[absent]
            if run.storage != "fp32":
                weight.copy_(weight.bfloat16())
        for stages, ends, present in self._alike(np.array(away), f) if away else ():
            self._write(theta, self._part(before, stages, ends), stages, ~present)

    def _rows(self, replicas: Sequence[int]) -> list[int]:
        """Where those of these replicas that are here have their weights."""
        return [self.held.index(replica) for replica in replicas if replica in self.held]

    def state_dict(self) -> dict:
        """Copies of all that the run needs to go on besides its weights, in tensors laid out as `REPLICA_FIRST`."""
        return {
            "sync": self.run.sync,
            "fragments": self.run.fragments,
            "arriving": {f: dict(message) for f, message in self.arriving.items()},
        } | {kind: {name: w.clone() for name, w in each.items()} for kind, each in self._kept().items()}

    def load_state_dict(self, state: dict | None) -> None:
        """Take over what `state_dict` gave; the fleet's weights must have been loaded before.

        From a state of another method, or None, nothing is taken: slow weights begin at the fast ones, and buffers at
        0.
        """
        alike = state is not None and state["sync"] == self.run.sync
        begin = state if alike else {"phi": self.theta}
        for kind, weights in self._kept().items():
            for name, weight in weights.items():
                weight.copy_(begin[kind][name]) if kind in begin else weight.zero_()
        self.arriving = {}
        if alike and state["fragments"] == self.run.fragments:
            for f, message in state["arriving"].items():
                weights = {
                    kind: {name: w.to(self.theta[name].device) for name, w in each.items()}
                    for kind, each in weights_in(message).items()
                }
                self.arriving[f] = message | weights

    def _kept(self) -> dict[str, Weights]:
        """The slow weights and the buffers, by kind."""
        return {"phi": self.phi, **self.buffers}

    def _exchange(
        self,
        theta: Weights,
        slow: Sequence[Weights],
        step: int,
        costs: Costs,
        away: np.ndarray | None = None,
        f: int | None = None,
    ) -> None:
        """Exchange these tensors by the groups and numbers of the run.

        theta: weights or gradients. slow: the slow weights, of methods without them none, and the buffers. away: the
        cells that are away, bool [R, S + 1], which take no part. f: whose fragment these are; None for all stages.
        """
        if away is not None:
            hops = 0
            for stages, ends, present in self._alike(away, f):
                parts, spent = [self._part(each, stages, ends) for each in (theta, *slow)], Costs()
                self._exchange_present(parts[0], parts[1:], step, spent, present)
                hops = max(hops, spent.pop("serial hops", 0))  # all parts travel at once
                costs.update(spent)
                for each, part in zip((theta, *slow), parts, strict=True):
                    self._write(each, part, stages, present)
            costs.add("serial hops", hops)
            return
        self._exchange_present(theta, slow, step, costs, self.run.present_at(step))

    def _exchange_present(
        self, theta: Weights, slow: Sequence[Weights], step: int, costs: Costs, present: np.ndarray | None
    ) -> None:
        """The exchange of those replicas that are there, bool [N]; None for all."""
        run = self.run
        consensus = run.outer_lr if run.consensus is None else run.consensus
        tensors = [(w, *(each.get(name) for each in slow)) for name, w in theta.items()]
        late = run.delay > 0 and not self.method.gradients
        numbers = run.outer_momentum, run.outer_lr, consensus, run.density
        if present is not None and not present.any():
            return
        given = run.groups_at(step), *numbers, late, costs, present, step
        x = self._exchange_of(tensors, *given, names=list(theta))
        absent = x.absent
        kept = [(tensor, tensor[absent]) for own in tensors for tensor in own if absent and tensor is not None]
        self.method.rule(x, **run.arguments("sync"))
        if self.method.groups:
            for tensor, own in kept:
                tensor[absent] = own
        if run.storage != "fp32":
            for tensor in (weight for each in (theta, *slow) for weight in each.values()):
                tensor.copy_(tensor.bfloat16())

    def _exchange_of(self, *arguments, names: list[str]) -> Exchange:
        """The exchange that a rule works on; arguments as of `Exchange`."""
        return Exchange(*arguments, names=names)

    def _alike(self, away: np.ndarray, f: int | None) -> Iterator[tuple[list[int], bool, np.ndarray]]:
        """The stages of a fragment, of all if it is None, by who has them: where they are in its tensors here, whether
        the ends are among them, and the replicas that have them, bool [R].
        """
        S, F = away.shape[1] - 1, self.run.fragments
        stages, ends = range(S) if f is None else range(f, S, F), f is None or f == F - 1
        count = next(w.shape[2] for name, w in self.theta.items() if of_layers(name))
        here = [s for s in stages if s in range(self.first, self.first + count)]
        found: dict[bytes, list[int]] = {}
        for s in [*stages, *[S] * ends]:
            found.setdefault(away[:, s].tobytes(), []).append(s)
        for group in found.values():
            yield [here.index(s) for s in group if s in here], S in group, ~away[:, group[0]]

    def _part(self, weights: Weights, stages: list[int], ends: bool) -> Weights:
        """Copies of these stages, and of the ends if asked."""
        return {
            name: w[:, :, stages].clone() if of_layers(name) else w.clone()
            for name, w in weights.items()
            if of_layers(name) or ends
        }

    def _write(self, weights: Weights, part: Weights, stages: list[int], replicas: np.ndarray) -> None:
        """Write what `_part` gave of these replicas, bool [R]."""
        rows = self._rows(np.flatnonzero(replicas).tolist())
        for name, new in part.items():
            for k, s in enumerate(stages) if of_layers(name) else [(0, 0)]:
                weights[name][rows, :, s] = new[rows, :, k]

    def _fragment(self, weights: Weights, f: int) -> Weights:
        """Views of the part of these weights that belongs to fragment f."""
        F = self.run.fragments
        ends = f == F - 1
        stages = slice((f - self.first) % F, None, F)
        return {
            name: w[REPLICA_FIRST.index(name, stages=stages)] for name, w in weights.items() if ends or of_layers(name)
        }
