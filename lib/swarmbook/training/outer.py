"""The outer optimizer: when replicas exchange what, and when the result arrives.

What an exchange does to the tensors is a rule of `swarmbook.methods.sync`. Slow and fast weights are those of NoLoCo
(section 3.2) and DiLoCo (arXiv 2311.08105); fragments, delay and mixing those of Streaming DiLoCo (arXiv 2501.18512).

Serves: the runs of the NoLoCo notebook.
"""

from torch import Tensor

from swarmbook.methods.costs import Costs
from swarmbook.methods.sync import SYNCS, Exchange
from swarmbook.training.stacked_weights import StackedWeights
from swarmbook.training.state_layout import REPLICA_FIRST, of_layers

Weights = dict[str, Tensor]  # laid out as REPLICA_FIRST


class OuterOptimizer:
    """The outer optimizer of one run: its slow weights and buffers, and what is on its way between its replicas.

    run: its `swarmbook.config.RunConfig`. rows: where the run's replicas are in the fleet.

    Fragment f of F holds the stages f, f + F, ... and the last fragment the embedding, norm and head too. It is
    exchanged when `sync_every` divides the steps of progress less f * sync_every // F. What is still on its way when a
    run ends does not arrive.

    A replica that is absent has crashed: its steps since the last exchange are lost. It goes on from its slow weights
    as they were or, where a method gives all replicas the same slow weights, from those of the others. Gossip has no
    slow weights: there an absent replica only misses the averaging.
    """

    def __init__(self, run, fleet: StackedWeights, rows: range):
        self.run, self.method = run, SYNCS[run.sync]
        self.first = 0  # the stage of the run that the fleet begins with
        self.theta, self.gradients = fleet.replica_views(rows), fleet.replica_views(rows, gradients=True)
        kept = self.theta if self.method.keeps else {}
        self.phi = {name: w.clone() for name, w in kept.items()}
        self.delta = {name: w.new_zeros(w.shape) for name, w in kept.items()}
        self.arriving: dict[int, dict] = {}  # fragment -> when, and its new fast weights

    def average_gradients(self, step: int, costs: Costs) -> None:
        """Exchange the gradients of step `step`, counted from 0, if the method works on gradients."""
        if self.method.gradients:
            self._exchange(self.gradients, {}, {}, step, costs)

    def step(self, position: int, costs: Costs) -> None:
        """Exchange what is due after `position` steps of progress, and mix in what arrives then."""
        run = self.run
        if self.method.gradients:
            return
        for f in range(run.fragments):
            if (position - f * run.sync_every // run.fragments) % run.sync_every == 0:
                theta = {name: w.clone() for name, w in self._fragment(self.theta, f).items()}
                slow = self._fragment(self.phi, f), self._fragment(self.delta, f)
                self._exchange(theta, *slow, (position - 1) // run.sync_every, costs)
                self.arriving[f] = {"at": position + run.delay, "theta": theta}
        for f in [f for f, message in self.arriving.items() if message["at"] == position]:
            theta = self.arriving.pop(f)["theta"]
            for name, weight in self._fragment(self.theta, f).items():
                weight.lerp_(theta[name], 1 - run.mixing)  # exact for mixing = 0 and 1
                if run.storage != "fp32":
                    weight.copy_(weight.bfloat16())

    def state_dict(self) -> dict:
        """Copies of all that the run needs to go on besides its weights, in tensors laid out as `REPLICA_FIRST`."""
        return {
            "sync": self.run.sync,
            "fragments": self.run.fragments,
            "phi": {name: w.clone() for name, w in self.phi.items()},
            "delta": {name: w.clone() for name, w in self.delta.items()},
            "arriving": {f: {"at": m["at"], "theta": dict(m["theta"])} for f, m in self.arriving.items()},
        }

    def load_state_dict(self, state: dict | None) -> None:
        """Take over what `state_dict` gave; the fleet's weights must have been loaded before.

        From a state of another method, or None, nothing is taken: slow weights begin at the fast ones, and buffers at
        0.
        """
        alike = state is not None and state["sync"] == self.run.sync
        for name, weight in self.phi.items():
            weight.copy_(state["phi"][name] if alike else self.theta[name])
            self.delta[name].copy_(state["delta"][name]) if alike else self.delta[name].zero_()
        self.arriving = {}
        if alike and state["fragments"] == self.run.fragments:
            for f, message in state["arriving"].items():
                theta = {name: w.to(self.theta[name].device) for name, w in message["theta"].items()}
                self.arriving[f] = {"at": message["at"], "theta": theta}

    def _exchange(self, theta: Weights, phi: Weights, delta: Weights, step: int, costs: Costs) -> None:
        """Exchange these tensors, of which `theta` are weights or gradients, by the groups and numbers of the run."""
        run = self.run
        consensus = run.outer_lr if run.consensus is None else run.consensus
        tensors = [(w, phi.get(name), delta.get(name)) for name, w in theta.items()]
        late = run.delay > 0 and not self.method.gradients
        numbers = run.outer_momentum, run.outer_lr, consensus, run.density
        present = run.present_at(step)
        if present is not None and not present.any():
            return
        x = self._exchange_of(tensors, run.groups_at(step), *numbers, late, costs, present)
        absent = x.absent
        for name in phi:
            theta[name][absent] = phi[name][absent]
        kept = [(tensor, tensor[absent]) for own in tensors for tensor in own if absent and tensor is not None]
        self.method.rule(x)
        if self.method.groups:
            for tensor, own in kept:
                tensor[absent] = own
        if run.storage != "fp32":
            for tensor in (*theta.values(), *phi.values(), *delta.values()):
                tensor.copy_(tensor.bfloat16())

    def _exchange_of(self, *arguments) -> Exchange:
        """The exchange that a rule works on; arguments as of `Exchange`."""
        return Exchange(*arguments)

    def _fragment(self, weights: Weights, f: int) -> Weights:
        """Views of the part of these weights that belongs to fragment f."""
        F = self.run.fragments
        ends = f == F - 1
        stages = slice((f - self.first) % F, None, F)
        return {
            name: w[REPLICA_FIRST.index(name, stages=stages)] for name, w in weights.items() if ends or of_layers(name)
        }
