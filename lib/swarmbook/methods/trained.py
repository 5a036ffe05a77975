"""Trained models as a measurement meets them: what it may ask of finished runs, and of their weights.

The training fulfils these protocols and does not know them. So measurements need no torch until they measure.

Serves: `swarmbook.methods.measurements`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class Model(Protocol):
    """The trained weights of R replicas of all runs side by side; `swarmbook.training.fleet.Fleet` is one.

    shape: the sizes of a model, a `swarmbook.methods.model_size.Shape`. layers: the weights of the layers, each
    [L, S, R, ...]. Stages count from 0; stage S is the ends. Tokens are int [1 or R, N, T], with T + 1 for `loss`.
    """

    shape: Any
    layers: "dict[str, Tensor]"

    def embed(self, tokens) -> "Tensor":
        """What enters the first stage, [R, N, T, D]."""

    def apply(self, stage: int, x: "Tensor") -> "Tensor":
        """What leaves a stage when x [R, N, T, D] enters it, each replica with its own weights."""

    def head_loss(self, x: "Tensor", targets, per_sequence: bool = False) -> "Tensor":
        """Mean cross-entropy in nats when x [R, N, T, D] enters the head: [R], or [R, N] per sequence."""

    def loss(self, tokens, cells=None, per_sequence: bool = False) -> "Tensor":
        """Mean cross-entropy in nats of the whole model: [R], or [R, N] per sequence; cells: another route."""

    def stage(self, replica: int, stage: int) -> "dict[str, Tensor]":
        """Weights of a stage of a replica by name; views, so that writing to them sets the weights."""

    def replica_views(self, replicas: range) -> "dict[str, Tensor]":
        """Weights of some replicas by name, replicas first; views, so that writing to them sets the weights."""

    def state_dict(self, replicas: Sequence[int] | None = None) -> "dict[str, Tensor]":
        """Copies of the weights of some replicas, or of all."""

    def load_state_dict(self, state: "dict[str, Tensor]", replicas: Sequence[int] | None = None) -> None:
        """Set the weights of some replicas, or of all, to what `state_dict` gave."""


class Trained(Protocol):
    """Finished runs that share a Fleet, as a measurement is given them; `swarmbook.training.trainer.Pack` is one.

    fleet: the weights of all replicas of all runs. runs: the configurations. held_out: the held-out sequences, int
    [1 or R, N, T + 1]. norms: gradient norms [R, S + 1] of the last step. step: the number of steps that were made.
    """

    fleet: Model
    runs: Sequence
    held_out: np.ndarray
    norms: "Tensor"
    step: int

    def replicas(self, i: int) -> range:
        """The rows of the Fleet that hold the replicas of run i."""

    def spread(self, i: int) -> float:
        """Root mean square, over the weights of run i, of their standard deviation over its replicas."""

    def rebuild(self, i: int, row: int, stage: int, dead: frozenset[int], rule: str) -> None:
        """Write the weights of a lost stage of run i by a recovery rule that keeps no copies.

        row: the replica's place in the Fleet. dead: all stages that are lost with it, this one included. rule: a key of
        `swarmbook.methods.recovery.RULES`.
        """
