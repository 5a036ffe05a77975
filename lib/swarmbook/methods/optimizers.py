"""Inner optimizers: what a replica does with its gradients in every step, named in `OPTIMIZERS`.

A rule gets an `Update` and changes its weights and buffers in place. Each tensor is updated from itself alone, because
the tensors of one stage may lie on several processes. Buffers have the shape of their weights and start at 0. They are
what `RunConfig.moments` resets, keeps or averages when a stage is rebuilt, and they are in every checkpoint.

Serves: every trained run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Update:
    """One step of some weights that have one learning rate. Iterating gives `tensors`.

    tensors: of each weight (weight, gradient, *buffers), alike in shape: one parameter of one layer, such as a matrix
    [inputs, outputs] or the gains of a norm [width]; or, for optimizers that are `elementwise`, maybe those of all
    layers, stages and replicas. names: of each weight "layers.qkv", "ends.head" and so on. steps: of each weight the
    steps of its cell with this one, fp32 of no dimension: 1 in the first step, and again in the first after its moments
    were reset. lr: learning rate. fused_adam: torch's kernel, which takes all of `tensors`, `steps` and `lr`, and
    (beta1, beta2) and epsilon.
    """

    tensors: "Sequence[tuple[Tensor, ...]]"
    names: Sequence[str]
    steps: "Sequence[Tensor]"
    lr: float
    fused_adam: Callable[[tuple[float, float], float], None]

    def __iter__(self) -> "Iterator[tuple[Tensor, ...]]":
        return iter(self.tensors)


Rule = Callable[..., None]


@dataclass(frozen=True)
class Optimizer:
    """A rule and what it works on.

    buffers: the names of what it keeps of each weight. elementwise: whether each entry of a weight is updated from its
    own gradient and buffers alone. Then many layers are updated at once, which is faster.
    """

    rule: Rule
    buffers: tuple[str, ...] = ()
    elementwise: bool = False


OPTIMIZERS: dict[str, Optimizer] = {}


def optimizer(name: str, buffers: Sequence[str] = (), elementwise: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule (update, *, parameters of its own) under a name; the other arguments are those of `Optimizer`."""

    def register(rule: Rule) -> Rule:
        OPTIMIZERS[name] = Optimizer(rule, tuple(buffers), elementwise)
        return rule

    return register


@optimizer("Adam", buffers=("first", "second"), elementwise=True)
def adam(x: Update, *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
    """Adam (Kingma and Ba 2015) as torch.optim.Adam computes it; with `weight_decay` AdamW (Loshchilov and Hutter)."""
    x.fused_adam((beta1, beta2), eps)


@optimizer("signSGD", elementwise=True)
def sign_sgd(x: Update) -> None:
    """Steps of one size against the sign of the gradient (arXiv 1802.04434), which DeMo makes of what it hears."""
    for weight, gradient in x:
        weight.sub_(gradient.sign(), alpha=x.lr)


@optimizer("Muon", buffers=("momentum", "second"))
def muon(x: Update, *, momentum: float = 0.95, iterations: int = 5, beta1: float = 0.9, beta2: float = 0.95) -> None:
    """Muon (Jordan et al. 2024) on the matrices of the layers, and Adam on gains, embedding and head."""
    for name, count, (weight, gradient, first, second) in zip(x.names, x.steps, x, strict=True):
        if name.startswith("layers.") and weight.dim() == 2:
            first.lerp_(gradient, 1 - momentum)
            rows, columns = weight.shape  # inputs, outputs
            step = orthogonal(gradient.lerp(first, momentum), iterations)
            weight.add_(step, alpha=-x.lr * max(1, columns / rows) ** 0.5)
        else:
            first.lerp_(gradient, 1 - beta1)
            second.lerp_(gradient.square(), 1 - beta2)
            size = (second / (1 - beta2**count)).sqrt_().add_(1e-8)
            weight.addcdiv_(first / (1 - beta1**count), size, value=-x.lr)


def orthogonal(matrix: "Tensor", iterations: int) -> "Tensor":
    """About U V^T of the matrix U S V^T, by Newton and Schulz's iteration with Jordan's coefficients."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(iterations):
        square = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


OURS = dict(OPTIMIZERS)  # `NUMERICS` stands for the numbers of these; the key of a run holds the code of any other rule
