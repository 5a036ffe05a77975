"""The LLaMA of the papers as pure functions over stacked rows.

- a row holds all parameters of one layer, or of one replica's ends (embedding, final norm, head), end to end
- functions take C rows at once and C blocks of tokens: batched matmuls train C cells together
- RMSNorm before each half, rotary positions (half-split), SwiGLU, no biases, untied head
"""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-6
ROPE_THETA = 1e4
INIT_STD = 0.02


@dataclass(frozen=True)
class Shape:
    """Sizes of one LLaMA: `stages` equal pipeline stages of `layers_per_stage` layers, and its two ends.

    width: D, of the residual stream; heads: attention heads, width / heads must be even; hidden: H, of the SwiGLU;
    vocabulary: V. Raises ValueError for sizes that make no model.
    """

    stages: int
    layers_per_stage: int
    width: int
    heads: int
    hidden: int
    vocabulary: int

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{field.name}={value!r} is not a size: give a whole number of at least 1")
        if self.width % self.heads:
            near = max(h for h in range(1, self.heads + 1) if self.width % h == 0)
            raise ValueError(
                f"width={self.width} cannot be shared out to heads={self.heads}: "
                f"give a width that is a multiple of the heads, or heads={near}"
            )
        if self.width // self.heads % 2:
            raise ValueError(
                f"width={self.width} over heads={self.heads} gives heads of odd width {self.width // self.heads}: "
                "rotary positions turn pairs, so make width / heads even"
            )

    @property
    def layers(self) -> int:
        return self.stages * self.layers_per_stage

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
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
        D, V = self.width, self.vocabulary
        return {"embedding": (V, D), "norm": (D,), "head": (D, V)}

    @property
    def layer_parameters(self) -> int:
        return sum(map(math.prod, self.layer_shapes.values()))

    @property
    def stage_parameters(self) -> int:
        return self.layers_per_stage * self.layer_parameters

    @property
    def ends_parameters(self) -> int:
        return sum(map(math.prod, self.ends_shapes.values()))

    @property
    def parameters(self) -> int:
        return self.stages * self.stage_parameters + self.ends_parameters


def unpack(rows: Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Views of `rows` [..., P] by parameter name, each [..., *its shape]."""
    parts = rows.split([math.prod(s) for s in shapes.values()], dim=-1)
    return {name: part.unflatten(-1, s) for (name, s), part in zip(shapes.items(), parts, strict=True)}


def draw(view: dict[str, Tensor], generator: torch.Generator) -> None:
    """Fill parameters in place as LLaMA starts: norms 1, all else N(0, 0.02), drawn on the CPU in this order."""
    for name, tensor in view.items():
        if name.endswith("norm"):
            tensor.fill_(1.0)
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * INIT_STD)


def rotary(length: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each [T, head_width / 2], fp32."""
    frequency = ROPE_THETA ** (-torch.arange(0, head_width, 2, device=device) / head_width)
    angle = torch.arange(length, device=device)[:, None] * frequency  # [T, head_width / 2]
    return angle.cos(), angle.sin()


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm of x [C, n, D] with weight [C, D]."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS) * weight[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on x [..., T, heads, head_width], half-split."""
    a, b = x.chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def layer(rows: Tensor, x: Tensor, cos: Tensor, sin: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """One transformer layer: rows [C, P], x [C, n, D] where n = sequences x T -> [C, n, D]; matmuls in `dtype`."""
    w = unpack(rows, shape.layer_shapes)
    C, n, D = x.shape
    T, heads = cos.shape[0], shape.heads
    y = norm(x, w["attention_norm"]).to(dtype)
    qkv = torch.bmm(y, w["qkv"].to(dtype)).view(-1, T, 3, heads, D // heads)
    q, k, v = qkv.unbind(2)  # [C * sequences, T, heads, head_width]
    q, k = rotate(q, cos, sin).to(dtype), rotate(k, cos, sin).to(dtype)
    o = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
    x = x + torch.bmm(o.transpose(1, 2).reshape(C, n, D), w["output"].to(dtype))
    y = norm(x, w["mlp_norm"]).to(dtype)
    gate, up = torch.bmm(y, w["gate_up"].to(dtype)).chunk(2, -1)
    return x + torch.bmm(F.silu(gate) * up, w["down"].to(dtype))


def embed(ends: Tensor, tokens: Tensor, shape: Shape) -> Tensor:
    """ends [R, E], tokens [R, n] -> [R, n, D]."""
    table = unpack(ends, shape.ends_shapes)["embedding"]  # [R, V, D]
    return table.gather(1, tokens[..., None].expand(-1, -1, shape.width))


def logits(ends: Tensor, x: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """ends [R, E], x [R, n, D] -> [R, n, V] in `dtype`."""
    w = unpack(ends, shape.ends_shapes)
    return torch.bmm(norm(x, w["norm"]).to(dtype), w["head"].to(dtype))


def losses(ends: Tensor, x: Tensor, targets: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """Cross-entropy of each token: targets [R, n] -> [R, n], fp32."""
    z = logits(ends, x, shape, dtype).float()
    return F.cross_entropy(z.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
