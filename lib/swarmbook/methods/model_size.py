"""The sizes of a model: shapes of its parameters, how many there are, and the FLOPs of a forward pass.

Serves: CheckFree tables 1 and 4; NoLoCo table 1; HDEE's tables of sizes and its budgets.
"""

import math
from dataclasses import dataclass, fields

INIT_STD = 0.02  # of LLaMA in transformers (`initializer_range`), which the papers' code uses at all widths


def scaled_init_std(width: int, reference: int = 1024) -> float:
    """The initial standard deviation that keeps the gain of fresh matrices at that of a model of width `reference`.

    A matrix with entries of deviation s multiplies the size of its input, of width D, by about s * sqrt(D). With 0.02
    everywhere, a fresh stage of a narrow model changes its input by next to nothing. So s falls with 1 / sqrt(D), as in
    the maximal update parametrisation for hidden layers (Yang et al. 2022, arXiv 2203.03466, table 3). 1,024 is the
    width of CheckFree's medium model.
    """
    return INIT_STD * math.sqrt(reference / width)


@dataclass(frozen=True)
class Shape:
    """Sizes of one LLaMA: equal pipeline stages, and its ends, which are the embedding, the last norm and the head.

    stages: the number S of stages. layers_per_stage: the transformer layers of a stage. width: the width D of the
    residual stream. heads: the attention heads of a layer; width / heads must be an even whole number. hidden: the
    hidden width H of the SwiGLU. vocabulary: the number V of tokens. init_std: the standard deviation with which the
    entries of fresh matrices are drawn. ValueError for sizes that make no model.
    """

    stages: int
    layers_per_stage: int
    width: int
    heads: int
    hidden: int
    vocabulary: int
    init_std: float = INIT_STD

    def __post_init__(self):
        for field in fields(self):
            if field.name == "init_std":
                continue
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{field.name}={value!r} is not a size: give a whole number of at least 1")
        if self.width % self.heads:
            near = max(h for h in range(1, self.heads + 1) if self.width % h == 0)
            raise ValueError(
                f"width={self.width} cannot be shared out to heads={self.heads}: "
                f"give a width that is a multiple of the heads, or heads={near}"
            )
        if self.head_width % 2:
            raise ValueError(
                f"width={self.width} over heads={self.heads} gives heads of odd width {self.head_width}: "
                "rotary positions turn pairs, so make width / heads even"
            )

    @property
    def layers(self) -> int:
        """The number of layers of all stages together."""
        return self.stages * self.layers_per_stage

    @property
    def head_width(self) -> int:
        """The width of one attention head."""
        return self.width // self.heads

    @property
    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters of one layer, by name."""
        D, H = self.width, self.hidden
        return {
            "attention_norm": (D,),
            "qkv": (D, 3 * D),  # query, key, value side by side, each head after head
            "output": (D, D),
            "mlp_norm": (D,),
            "gate_up": (D, 2 * H),  # gate, then up
            "down": (H, D),
        }

    @property
    def ends_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters of the ends, by name."""
        D, V = self.width, self.vocabulary
        return {"embedding": (V, D), "norm": (D,), "head": (D, V)}

    @property
    def stage_parameters(self) -> int:
        """The number of parameters of one stage."""
        return self.layers_per_stage * sum(map(math.prod, self.layer_shapes.values()))

    @property
    def ends_parameters(self) -> int:
        """The number of parameters of the ends."""
        return sum(map(math.prod, self.ends_shapes.values()))

    @property
    def parameters(self) -> int:
        """The number of parameters of the whole model."""
        return self.stages * self.stage_parameters + self.ends_parameters


def flops(shape: Shape, tokens: int, sequence: int, share: float = 1.0, ends: bool = True) -> int:
    """FLOPs of one forward pass over `tokens` tokens in sequences of `sequence`; a backward pass takes twice as many.

    share: the share of the stages that a token goes through, on average. ends: whether the head counts too. A
    multiply-add counts as 2 FLOPs. Only matmuls and causal attention are counted.
    """
    D, H = shape.width, shape.hidden
    layer = 2 * (4 * D * D + 3 * D * H) + 2 * D * (sequence + 1)  # scores and values of half the positions
    return round(share * tokens * shape.layers * layer) + (tokens * 2 * D * shape.vocabulary if ends else 0)
