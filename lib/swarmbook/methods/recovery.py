"""How a lost stage is rebuilt: one small function a rule, named in `RULES`.

A rule gets a `Lost` stage and writes its weights in place. What it needs from other nodes it asks for, by `fetch`,
`norm` or `copy`. Each counts the bytes that would cross the network, and none answers for a dead stage, whose weights
are NaN by then. A rule that relies on copies on other nodes says so when it is registered, as a `Strategy`, and the run
is charged for them. Afterwards the trainer sets the stage's Adam moments and raises its learning rate.
The file is long since rules are read side by side.

Serves: CheckFree figures 2 to 4 and table 1, and what it says of single losses, pairs and moments.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from swarmbook.methods.costs import Costs, bytes_of

if TYPE_CHECKING:
    from torch import Tensor

Weights = Mapping[str, "Tensor"]


class Cells(Protocol):
    """Where a rule reads and writes stages.

    It is a `swarmbook.training.fleet.Fleet`, or what one rank sees of a run on many processes. shape: the sizes of the
    model, a `swarmbook.methods.model_size.Shape`. Stages count from 0; stage S is the ends.
    """

    shape: Any

    def stage(self, replica: int, stage: int) -> "dict[str, Tensor]":
        """Weights of a stage by name, each [layers per stage, ...]; views, so that writing to them sets the weights."""

    def initialise(self, replica: int, stage: int, seed: int) -> None:
        """Write fresh weights, drawn with the seed."""


@dataclass
class Lost:
    """A lost stage of one replica. Stages count from 0; stage S is the ends: embedding, last norm and head.

    fleet: where stages are read and written. dead: all stages of the replica that died in the same step, this one
    included. norms: gradient norms [R, S + 1] of the last step, before they were clipped to `clip`. rng: the generator
    of this rule in this step. kept: the copy that the strategy has of this stage on other nodes, None if none survived.
    peers: the replicas of the run in which this very stage is alive, the next one first. slow: where the slow weights
    of stages are read, None if the run's exchange has none. costs: where what is sent is counted. told: the stages
    whose norms were sent.

    A rule can change what the trainer does next. moments: what becomes of Adam's moments, as in `RunConfig`; "peer" for
    those of the first of the peers and "peers" for the mean of those of all, which are sent as well. boosted: whether
    the learning rate of the stage is raised. rolled_back: whether the whole run goes back to its last copy.
    """

    fleet: Cells
    replica: int
    stage: int
    dead: frozenset[int]
    norms: "Tensor"
    rng: np.random.Generator
    clip: float = 1.0
    kept: Weights | None = None
    peers: Sequence[int] = ()
    slow: Cells | None = None
    moments: Literal["reset", "keep", "average", "peer", "peers"] = "reset"
    boosted: bool = True
    rolled_back: bool = False
    costs: Costs = field(default_factory=Costs)
    told: set[int] = field(default_factory=set)

    @property
    def weights(self) -> Weights:
        """Weights of the lost stage, each [layers per stage, ...]; views that the rule is to write."""
        return self.fleet.stage(self.replica, self.stage)

    @property
    def neighbours(self) -> list[int]:
        """The nearest surviving stage on each side, the earlier one first.

        The first and the last stage have one neighbour, and the ends have none, because no stage is like them.
        """
        stages = self.fleet.shape.stages
        if self.stage == stages:
            return []
        before = [s for s in range(self.stage) if s not in self.dead]
        after = [s for s in range(self.stage + 1, stages) if s not in self.dead]
        return before[-1:] + after[:1]

    def fetch(self, stage: int) -> Weights:
        """Weights of a surviving stage of the same replica, sent over the network; KeyError for a dead stage."""
        self._alive(stage)
        return self._sent(self.fleet.stage(self.replica, stage))

    def fetch_from(self, peer: int, slow: bool = False) -> Weights:
        """Weights of this very stage in another replica, one of `peers`, sent over the network; KeyError for others.

        slow: its slow weights instead.
        """
        if peer not in self.peers:
            raise KeyError(f"stage {self.stage + 1} of replica {peer + 1} is none to ask: take one of {self.peers}")
        return self._sent((self.slow if slow else self.fleet).stage(peer, self.stage))

    def _sent(self, weights: Weights) -> Weights:
        self.costs.add("sent on failure", bytes_of(weights))
        return weights

    def norm(self, stage: int) -> float:
        """Gradient norm of a surviving stage in the last step, before clipping; KeyError for a dead stage."""
        self._alive(stage)
        self.costs.add("sent on failure", 4 * (stage not in self.told))
        self.told.add(stage)
        return float(self.norms[self.replica, stage])

    def copy(self) -> Weights | None:
        """The copy of this stage that the strategy keeps on another node, sent back; None if none survived."""
        if self.kept is not None:
            self.costs.add("sent on failure", bytes_of(self.kept))
        return self.kept

    def write(self, weights: Weights) -> None:
        """Set the weights of the lost stage."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])

    def draw(self) -> None:
        """Set the weights of the lost stage to fresh random ones."""
        self.fleet.initialise(self.replica, self.stage, int(self.rng.integers(2**63)))

    def mix(self, shares: Mapping[int, float]) -> None:
        """Write the weighted average of surviving stages; `shares` are the weights by stage, in any unit.

        If all shares are 0 they count as equal. Without any share, fresh random weights are written.
        """
        if not shares:
            return self.draw()
        total = sum(shares.values())
        shares = {s: share / total if total else 1 / len(shares) for s, share in shares.items()}
        sources = {s: self.fetch(s) for s in shares}
        self.write({name: sum(shares[s] * sources[s][name] for s in shares) for name in self.weights})

    def roll_back(self) -> None:
        """Ask the trainer to put the whole run back to its last copy."""
        self.rolled_back = True

    def _alive(self, stage: int) -> None:
        if stage in self.dead:
            raise KeyError(f"stage {stage + 1} died in the same step: use lost.neighbours, the nearest survivors")


Rule = Callable[[Lost], None]


@dataclass(frozen=True)
class Strategy:
    """A rule and the copies that it relies on.

    keeps: what is copied. "ends" is the embedding, last norm and head; "stages" is the weights of every stage, and of
    the ends; "run" is all weights and Adam moments; None is nothing. holders: which stages hold the copy of a stage, as
    distances from it; -1 is the stage before it, on a ring that closes through the ends. Without holders, the copy lies
    in storage that does not fail. always: whether copies are taken after every step, and not every `keep_every` steps.
    forwards: whether every stage also runs the stages whose copies it holds forward, in every step. decides: the fields
    of a run that say what becomes of a rebuilt stage, of which the rule reads none because it decides itself. peers:
    whether the rule asks other replicas, by `lost.fetch_from`; then a run needs several. slow: whether it asks them for
    slow weights; then the run's exchange needs some. neighbours: whether the rule makes a stage of others of its own
    replica, or of copies on them, so that nothing is left for it where the whole replica is lost.
    """

    rule: Rule
    keeps: Literal["ends", "stages", "run"] | None = None
    holders: tuple[int, ...] = ()
    always: bool = False
    forwards: bool = False
    decides: tuple[str, ...] = ()
    peers: bool = False
    slow: bool = False
    neighbours: bool = False

    def covers(self, stage: int, stages: int) -> bool:
        """Whether a copy of this stage, of S `stages`, is kept; stage S is the ends."""
        return self.keeps is not None and (self.keeps != "ends" or stage == stages)

    def holders_of(self, stage: int, stages: int) -> set[int]:
        """The stages that hold the copy of a stage; for the ends, the first holds the embedding, the last the head."""
        if stage == stages and self.holders:
            return {0, stages - 1}
        return {(stage + distance) % (stages + 1) for distance in self.holders}

    def survives(self, stage: int, stages: int, dead: Set[int]) -> bool:
        """Whether a copy of a stage is left if all stages of `dead` die with it."""
        if self.keeps == "run" or not self.covers(stage, stages):
            return False
        holders = self.holders_of(stage, stages)
        if stage == stages:
            return holders.isdisjoint(dead)  # embedding and head lie apart
        return not holders or not holders <= dead


RULES: dict[str, Strategy | None] = {"none": None}


def recovery(name: str, **copies) -> Callable[[Rule], Rule]:
    """Register a rule under a name. A rule that calls `lost.copy()` gives the other fields of `Strategy` as well."""

    def register(rule: Rule) -> Rule:
        RULES[name] = Strategy(rule, **copies)
        return rule

    return register


@recovery("random")
def random(lost: Lost) -> None:
    """Fresh random weights (CheckFree, figure 2)."""
    lost.draw()


@recovery("identity")
def identity(lost: Lost) -> None:
    """Fresh weights whose two output projections are zero: the stage passes its input on until it has learnt."""
    lost.draw()
    for name in ("output", "down"):
        if name in lost.weights:
            lost.weights[name].zero_()


@recovery("all zeros")
def all_zeros(lost: Lost) -> None:
    """All weights zero, the gains of the norms included: what "copy" and "random" come to in the released code.

    The stage passes its input on and never learns again, because all its gradients are zero.
    """
    for weight in lost.weights.values():
        weight.zero_()


@recovery("copy previous", neighbours=True)
def copy_previous(lost: Lost) -> None:
    """A copy of the nearest surviving stage before it, or after it for the first stage (CheckFree, figure 2)."""
    lost.mix({s: 1.0 for s in lost.neighbours[:1]})


def norm_average(power: float, clipped: bool = False, floor: float = 0.0) -> Rule:
    """The rule that averages the neighbours with weights norm ** power + floor (CheckFree, section 4.2).

    The first and the last stage have one neighbour and become a copy of it. power: 2 in the paper, 1 in the released
    code, 0 for equal weights. clipped: whether the norm is taken after clipping, so that all neighbours that were
    clipped count alike. floor: 1e-4 in the released code.
    """

    def rule(lost: Lost) -> None:
        shares = {}
        for stage in lost.neighbours:
            norm = lost.norm(stage) if power else 1.0
            shares[stage] = (min(norm, lost.clip) if clipped else norm) ** power + floor
        lost.mix(shares)

    return rule


recovery("uniform average", neighbours=True)(norm_average(power=0))
checkfree = norm_average(power=2)  # Algorithm 1, with the weights of line 3 corrected
recovery("CheckFree", neighbours=True)(checkfree)
recovery("CheckFree, power 1", neighbours=True)(norm_average(power=1))
released = norm_average(power=1, clipped=True, floor=1e-4)
recovery("CheckFree, as released", neighbours=True)(released)


@recovery("CheckFree+", keeps="ends", holders=(-1,), always=True, neighbours=True)
def checkfree_plus(lost: Lost) -> None:
    """CheckFree for stages; the ends come back exactly, from copies on the first and last stage (section 4.3).

    It is meant for the route "swapped ends". There the second stage learns to be the first one as well, and the last
    but one to be the last, so that a copy of it is a good replacement.
    """
    if not _exact(lost):
        checkfree(lost)


@recovery("CheckFree+, as released", keeps="ends", holders=(-1,), always=True, neighbours=True)
def checkfree_plus_released(lost: Lost) -> None:
    """As the released code has it: a lost second stage becomes a copy of the first, the last but one of the last."""
    last = lost.fleet.shape.stages - 1
    partner = {1: 0, last - 1: last}.get(lost.stage)
    if _exact(lost):
        return
    if partner is not None and partner not in lost.dead:
        lost.mix({partner: 1.0})
    else:
        released(lost)


@recovery("neighbour snapshot", keeps="stages", holders=(-1, 1), neighbours=True)
def neighbour_snapshot(lost: Lost) -> None:
    """The stage as it was up to `keep_every` steps ago, from a neighbour's memory; if lost too, the uniform average."""
    copy = lost.copy()
    if copy is not None:
        lost.write(copy)
    else:
        lost.mix({s: 1.0 for s in lost.neighbours})


@recovery("redundant computation", keeps="stages", holders=(-1,), always=True, forwards=True, neighbours=True)
def redundant_computation(lost: Lost) -> None:
    """The stage as it was, moments included, from the stage before it (CheckFree, section 5).

    If both are lost, the uniform average of the neighbours.
    """
    if _exact(lost):
        lost.moments = "keep"
    else:
        lost.mix({s: 1.0 for s in lost.neighbours})


@recovery("peer copy", peers=True)
def peer_copy(lost: Lost) -> None:
    """A copy of the same stage of another replica, with its moments (as torchft heals, and Oobleck, arXiv 2309.08125).

    Where replicas are kept alike in every step, nothing is lost. Else the stage is that of a replica that has learnt
    from other data. If it died in all replicas, the uniform average of the neighbours.
    """
    _from_peers(lost, lost.peers[:1], "peer")


@recovery("mean of peers", peers=True)
def mean_of_peers(lost: Lost) -> None:
    """The mean of the same stage over all replicas that still have it, with the mean of their moments.

    It is ours: what a step of plain averaging over the survivors would give them all (as in FedAvg, arXiv 1602.05629).
    Where all replicas have the same weights it is a copy. If it died in all replicas, the uniform average of the
    neighbours.
    """
    _from_peers(lost, lost.peers, "peers")


@recovery("peer's slow weights", peers=True, slow=True)
def peers_slow_weights(lost: Lost) -> None:
    """The slow weights of the same stage of another replica, with the moments of that replica.

    It is ours. Slow weights lie in the middle of the replicas more than fast ones do, but are behind by the inner steps
    since the last exchange; with `rejoin="slow"` a replica goes back so by itself. If the stage died in all replicas,
    the uniform average of the neighbours.
    """
    _from_peers(lost, lost.peers[:1], "peer", slow=True)


@recovery("rollback", keeps="run", decides=("moments", "lr_boost", "boost_half_life", "slow_weights"))
def rollback(lost: Lost) -> None:
    """All stages go back to the last checkpoint, with their moments and place in the data (CheckFree, section 5)."""
    lost.roll_back()


@recovery("learning rate alone", keeps="stages", always=True, decides=("moments",))
def learning_rate_alone(lost: Lost) -> None:
    """A control: the stage comes back as it was, moments included, but its learning rate is raised."""
    lost.write(lost.copy())
    lost.moments = "keep"


OURS = dict(RULES)  # `NUMERICS` stands for the numbers of these; the key of a run holds the code of any other rule


def _from_peers(lost: Lost, peers: Sequence[int], moments: Literal["peer", "peers"], slow: bool = False) -> None:
    """Write the mean of the stage in these replicas, and go on as they do; without any, the average of neighbours."""
    if not peers:
        lost.mix({s: 1.0 for s in lost.neighbours})
        return
    sources = [lost.fetch_from(peer, slow) for peer in peers]
    mean = {name: sum(source[name] for source in sources) / len(sources) for name in lost.weights}
    lost.write(mean if len(sources) > 1 else sources[0])
    lost.moments, lost.boosted = moments, False


def _exact(lost: Lost) -> bool:
    """Put back the copy of this very step, without a higher learning rate; False if there is none."""
    copy = lost.copy()
    if copy is None:
        return False
    lost.write(copy)
    lost.boosted = False
    return True
