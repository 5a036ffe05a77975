"""What stands in for a lost stage: one small function a rule, named in `RULES`.

A rule writes the weights of `lost` in place. It may read the surviving stages and the gradient norms of the step
before, and nothing of any stage in `lost.dead`. The trainer then starts the stage's Adam afresh and multiplies its
learning rate by `lr_boost` (CheckFree Algorithm 1; moments as in the released code).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from swarmbook.fleet import Fleet


@dataclass(frozen=True)
class Lost:
    """A lost cell, and all stages of its replica that died in the same step (itself included)."""

    replica: int
    stage: int
    dead: frozenset[int]
    stages: int
    rng: np.random.Generator

    @property
    def neighbours(self) -> list[int]:
        """The nearest surviving stage on each side, the one nearer the embedding first; at an end only one."""
        before = [s for s in range(self.stage) if s not in self.dead]
        after = [s for s in range(self.stage + 1, self.stages) if s not in self.dead]
        return before[-1:] + after[:1]


Rule = Callable[["Fleet", Lost, "Tensor"], None]
RULES: dict[str, Rule | None] = {"none": None}


def recovery(name: str) -> Callable[[Rule], Rule]:
    """Register a rule (fleet, lost, norms) under a name; norms [R, S+1] are last step's, before clipping."""

    def register(rule: Rule) -> Rule:
        RULES[name] = rule
        return rule

    return register


@recovery("random")
def random(fleet: "Fleet", lost: Lost, norms: "Tensor") -> None:
    """A freshly initialised stage."""
    fleet.initialise(lost.replica, lost.stage, int(lost.rng.integers(2**63)))


@recovery("copy previous")
def copy_previous(fleet: "Fleet", lost: Lost, norms: "Tensor") -> None:
    """The nearest surviving stage before it (the one after it for the first stage)."""
    _mix(fleet, lost, {s: 1.0 for s in lost.neighbours[:1]})


@recovery("uniform average")
def uniform_average(fleet: "Fleet", lost: Lost, norms: "Tensor") -> None:
    """The mean of the two neighbours; at either end a copy of the only one."""
    _mix(fleet, lost, {s: 1.0 for s in lost.neighbours})


@recovery("CheckFree")
def checkfree(fleet: "Fleet", lost: Lost, norms: "Tensor") -> None:
    """The neighbours weighted by their squared gradient norms (section 4.2, Algorithm 1 with line 3 corrected).

    At either end a copy of the only neighbour, as in the newest released code. CheckFree+ is this rule together
    with the route "swapped ends", which makes those copies good ones (section 4.3).
    """
    _mix(fleet, lost, {s: float(norms[lost.replica, s]) ** 2 for s in lost.neighbours})


def _mix(fleet: "Fleet", lost: Lost, weights: dict[int, float]) -> None:
    if not weights:  # no other stage survived
        return random(fleet, lost, None)
    total = sum(weights.values())
    shares = {s: weight / total if total else 1 / len(weights) for s, weight in weights.items()}
    sources = {s: fleet.stage(lost.replica, s) for s in shares}
    for name, weight in fleet.stage(lost.replica, lost.stage).items():
        weight.copy_(sum(share * sources[s][name] for s, share in shares.items()))
