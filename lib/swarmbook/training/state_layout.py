"""Where the tensors of a run have their replicas and their stages.

Weights, gradients and moments go by name: "layers.qkv" and its like for the parameters that every stage has,
"ends.head" and its like for the embedding, the last norm and the head, of which a replica has one and a stage none. A
`Layout` knows the axes of both, so that nothing else has to ask.

Serves: every trained run, its checkpoints and its final state.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

LAYERS, ENDS = "layers.", "ends."


class Layout(NamedTuple):
    """The axes of replicas and of stages in tensors of layers, and the axis of replicas in tensors of the ends."""

    replicas: int
    stages: int
    ends: int

    def replica_axis(self, name: str) -> int:
        """The axis of replicas in the tensor of this name."""
        return self.replicas if of_layers(name) else self.ends

    def index(self, name: str, replicas: Any = slice(None), stages: Any = slice(None)) -> tuple:
        """What picks these replicas and stages from the tensor of this name; one of the ends has no stages to pick.

        replicas, stages: numbers, slices, lists or tensors, as tensors take them.
        """
        where = {self.replicas: replicas, self.stages: stages} if of_layers(name) else {self.ends: replicas}
        return tuple(where.get(axis, slice(None)) for axis in range(max(where) + 1))

    def cell(self, tensors: "Mapping[str, Tensor]", replica: int, stage: int | None) -> "dict[str, Tensor]":
        """Views of one cell by parameter, such as "qkv"; of the replica's ends, if stage is None."""
        kind = ENDS if stage is None else LAYERS
        named = {name: tensor for name, tensor in tensors.items() if name.startswith(kind)}
        return {name.removeprefix(kind): tensor[self.index(name, replica, stage)] for name, tensor in named.items()}


WEIGHTS = Layout(replicas=2, stages=1, ends=0)  # [layers per stage, S, R, ...] and [R, ...]
MOMENTS = Layout(replicas=3, stages=2, ends=1)  # Adam's two, stacked: [2, layers per stage, S, R, ...] and [2, R, ...]
REPLICA_FIRST = Layout(replicas=0, stages=2, ends=0)  # [R, layers per stage, S, ...] and [R, 1, 1, ...]


def of_layers(name: str) -> bool:
    """Whether the tensor of this name belongs to the layers, and so has stages."""
    return name.startswith(LAYERS)


def named(layers: "Mapping[str, Tensor]", ends: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Tensors of layers and ends by parameter, under the names that a `Layout` tells apart."""
    return {LAYERS + name: t for name, t in layers.items()} | {ENDS + name: t for name, t in ends.items()}


def replica_first(name: str, tensor: "Tensor") -> "Tensor":
    """A view of a tensor as of `WEIGHTS`, laid out as `REPLICA_FIRST` says."""
    return tensor.movedim(WEIGHTS.replicas, REPLICA_FIRST.replicas) if of_layers(name) else tensor[:, None, None]


def kept_in(state: Mapping) -> "dict[str, dict[str, Tensor]]":
    """What of an outer optimizer's state are slow weights and buffers."""
    return {kind: each for kind, each in state.items() if kind not in ("sync", "fragments", "arriving")}


def weights_in(message: Mapping) -> "dict[str, dict[str, Tensor]]":
    """What of a message that is on its way are weights: fast ones, and maybe slow ones."""
    return {kind: message[kind] for kind in ("theta", "slow") if kind in message}
