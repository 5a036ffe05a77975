"""What stands in for a lost stage: one small function a strategy, named in `RULES`.

A rule gets a `Lost` stage and writes its weights in place. What it wants to know of other nodes it asks for, by
`fetch`, `norm` or `copy`: each counts the bytes that would cross the network, and none answers for a dead stage, whose
own weights are NaN by then. A strategy that keeps copies on other nodes says so when it is registered, and is charged
for them. Afterwards the trainer resets (or keeps, or averages) the stage's Adam moments and raises its learning rate.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from swarmbook.methods.costs import Costs, bytes_of

if TYPE_CHECKING:
    from torch import Tensor

Weights = Mapping[str, "Tensor"]


class Cells(Protocol):
    """Where a rule reads and writes stages: a Fleet, or one rank's view of a run that is spread over processes."""

    shape: Any

    def stage(self, replica: int, stage: int) -> "dict[str, Tensor]": ...
    def initialise(self, replica: int, stage: int, seed: int) -> None: ...


@dataclass
class Lost:
    """A lost cell. Stages count from 0; stage `fleet.shape.stages` is the ends: embedding, last norm and head.

    dead: all stages of its replica that died in the same step, this one included. norms [R, S + 1]: gradient norms of
    the last step before clipping to `clip`. kept: what the strategy keeps of this stage elsewhere, as it was when it
    was copied; None where no copy survived. rng: the rule's own. A rule may change what the trainer does next:
    `moments`, as configured, and `boosted`, whether the stage's learning rate is raised.
    """

    fleet: Cells
    replica: int
    stage: int
    dead: frozenset[int]
    norms: "Tensor"
    rng: np.random.Generator
    clip: float = 1.0
    kept: Weights | None = None
    moments: Literal["reset", "keep", "average"] = "reset"
    boosted: bool = True
    rolled_back: bool = False
    costs: Costs = field(default_factory=Costs)

    @property
    def weights(self) -> Weights:
        """Views of the lost stage, each [layers per stage, ...], to be written."""
        return self.fleet.stage(self.replica, self.stage)

    @property
    def neighbours(self) -> list[int]:
        """The nearest surviving stage on each side, the one nearer the embedding first; at an end only one.

        None for the embedding and head themselves: no stage is like them.
        """
        stages = self.fleet.shape.stages
        if self.stage == stages:
            return []
        before = [s for s in range(self.stage) if s not in self.dead]
        after = [s for s in range(self.stage + 1, stages) if s not in self.dead]
        return before[-1:] + after[:1]

    def fetch(self, stage: int) -> Weights:
        """Weights of a surviving stage of the same replica, sent over the network. KeyError for a dead one."""
        self._alive(stage)
        weights = self.fleet.stage(self.replica, stage)
        self.costs.add("sent on failure", bytes_of(weights))
        return weights

    def norm(self, stage: int) -> float:
        """Gradient norm of a surviving stage in the last step, before clipping. KeyError for a dead one."""
        self._alive(stage)
        self.costs.add("sent on failure", 4)
        return float(self.norms[self.replica, stage])

    def copy(self) -> Weights | None:
        """The copy of this stage that the strategy keeps on another node, sent back; None where none survived."""
        if self.kept is not None:
            self.costs.add("sent on failure", bytes_of(self.kept))
        return self.kept

    def write(self, weights: Weights) -> None:
        for name, weight in self.weights.items():
            weight.copy_(weights[name])

    def draw(self) -> None:
        """Write freshly initialised weights."""
        self.fleet.initialise(self.replica, self.stage, int(self.rng.integers(2**63)))

    def mix(self, shares: Mapping[int, float]) -> None:
        """Write the average of surviving stages in these shares (equal ones if all are 0); fresh weights if none."""
        if not shares:
            return self.draw()
        total = sum(shares.values())
        shares = {s: share / total if total else 1 / len(shares) for s, share in shares.items()}
        sources = {s: self.fetch(s) for s in shares}
        self.write({name: sum(shares[s] * sources[s][name] for s in shares) for name in self.weights})

    def roll_back(self) -> None:
        """Ask the trainer to put the whole run back to where its last copy was taken."""
        self.rolled_back = True

    def _alive(self, stage: int) -> None:
        if stage in self.dead:
            raise KeyError(f"stage {stage + 1} died in the same step: use lost.neighbours, the nearest survivors")


Rule = Callable[[Lost], None]


@dataclass(frozen=True)
class Strategy:
    """A rule and the copies that it relies on.

    keeps: what is copied: "ends" (embedding, last norm, head), "stages" (weights of every stage) or "run" (all weights
    and Adam moments). holders: where the copy of a stage lies, as distances to other stages (-1: the one before it,
    around the ring through the ends); none: in storage that does not fail. always: copied after every step; otherwise
    every `keep_every` steps. forwards: every stage also runs what it holds copies of forward, in every step.
    """

    rule: Rule
    keeps: Literal["ends", "stages", "run"] | None = None
    holders: tuple[int, ...] = ()
    always: bool = False
    forwards: bool = False

    def covers(self, stage: int, stages: int) -> bool:
        """Whether it keeps a copy of a stage; stage `stages` is the ends."""
        return self.keeps is not None and (self.keeps != "ends" or stage == stages)

    def holders_of(self, stage: int, stages: int) -> set[int]:
        """Stages that hold the copy of a stage. Of the ends, embedding and head lie with the stages next to them."""
        if stage == stages and self.holders:
            return {0, stages - 1}
        return {(stage + distance) % (stages + 1) for distance in self.holders}

    def survives(self, stage: int, stages: int, dead: Set[int]) -> bool:
        """Whether a copy of a stage is left when it dies with all of `dead`."""
        if self.keeps == "run" or not self.covers(stage, stages):
            return False
        holders = self.holders_of(stage, stages)
        if stage == stages:
            return holders.isdisjoint(dead)  # embedding and head lie apart
        return not holders or not holders <= dead


RULES: dict[str, Strategy | None] = {"none": None}


def recovery(name: str, **copies) -> Callable[[Rule], Rule]:
    """Register a rule under a name; `copies` are the fields of `Strategy`, for a rule that calls `lost.copy()`."""

    def register(rule: Rule) -> Rule:
        RULES[name] = Strategy(rule, **copies)
        return rule

    return register


@recovery("random")
def random(lost: Lost) -> None:
    """A freshly initialised stage."""
    lost.draw()


@recovery("identity")
def identity(lost: Lost) -> None:
    """A fresh stage whose two output projections are zero: it passes its input on unchanged until it has learnt."""
    lost.draw()
    for name in ("output", "down"):
        if name in lost.weights:
            lost.weights[name].zero_()


@recovery("all zeros")
def all_zeros(lost: Lost) -> None:
    """What the released code's "copy" and "random" come to: every weight zero, norm gains included.

    The stage passes its input on and never learns again, because all its gradients are zero.
    """
    for weight in lost.weights.values():
        weight.zero_()


@recovery("copy previous")
def copy_previous(lost: Lost) -> None:
    """The nearest surviving stage before it (the one after it for the first stage)."""
    lost.mix({s: 1.0 for s in lost.neighbours[:1]})


def norm_average(power: float, clipped: bool = False, floor: float = 0.0) -> Rule:
    """Rule: the neighbours averaged with weights norm ** power + floor (section 4.2); at either end a copy.

    power: 2 in the paper, 1 in the released code, 0 for equal weights. clipped: take the norm after clipping, so that
    all neighbours that were clipped count alike. floor: 1e-4 in the released code.
    """

    def rule(lost: Lost) -> None:
        shares = {}
        for stage in lost.neighbours:
            norm = lost.norm(stage) if power else 1.0
            shares[stage] = (min(norm, lost.clip) if clipped else norm) ** power + floor
        lost.mix(shares)

    return rule


recovery("uniform average")(norm_average(power=0))
checkfree = norm_average(power=2)  # Algorithm 1, with the weights of line 3 corrected
recovery("CheckFree")(checkfree)
recovery("CheckFree, power 1")(norm_average(power=1))
released = norm_average(power=1, clipped=True, floor=1e-4)
recovery("CheckFree, as released")(released)


@recovery("CheckFree+", keeps="ends", holders=(-1,), always=True)
def checkfree_plus(lost: Lost) -> None:
    """As CheckFree; embedding and head come back exactly, from the copies on the first and last stage (section 4.3).

    Meant for the route "swapped ends", which makes the copy that replaces a lost first or last stage a good one.
    """
    if not _exact(lost):
        checkfree(lost)


@recovery("CheckFree+, as released", keeps="ends", holders=(-1,), always=True)
def checkfree_plus_released(lost: Lost) -> None:
    """Also the partners of the ends are copies: stage 2 of stage 1, and the last but one of the last."""
    last = lost.fleet.shape.stages - 1
    partner = {1: 0, last - 1: last}.get(lost.stage)
    if _exact(lost):
        return
    if partner is not None and partner not in lost.dead:
        lost.mix({partner: 1.0})
    else:
        released(lost)


@recovery("neighbour snapshot", keeps="stages", holders=(-1, 1))
def neighbour_snapshot(lost: Lost) -> None:
    """The stage as it was up to `keep_every` steps ago, from either neighbour's memory; else the uniform average."""
    copy = lost.copy()
    if copy is not None:
        lost.write(copy)
    else:
        lost.mix({s: 1.0 for s in lost.neighbours})


@recovery("redundant computation", keeps="stages", holders=(-1,), always=True, forwards=True)
def redundant_computation(lost: Lost) -> None:
    """The stage as it was, moments included, from the one before it (section 5); lost with it, the uniform average."""
    if _exact(lost):
        lost.moments = "keep"
    else:
        lost.mix({s: 1.0 for s in lost.neighbours})


@recovery("rollback", keeps="run")
def rollback(lost: Lost) -> None:
    """All stages go back to the last checkpoint, with moments and place in the data (section 5)."""
    lost.roll_back()


@recovery("learning rate alone", keeps="stages", always=True)
def learning_rate_alone(lost: Lost) -> None:
    """A control: the stage comes back as it was, moments included, and only its learning rate is raised."""
    lost.write(lost.copy())
    lost.moments = "keep"


OURS = dict(RULES)  # whose numbers `NUMERICS` stands for; of any other the key of a run holds the code


def _exact(lost: Lost) -> bool:
    """Put back the copy kept of this very step, without a higher learning rate; False where there is none."""
    copy = lost.copy()
    if copy is None:
        return False
    lost.write(copy)
    lost.boosted = False
    return True
