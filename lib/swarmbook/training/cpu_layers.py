"""Layers and loss of `swarmbook.training.llama` on a CPU in fp32: the same to rounding, with less memory traffic.

Matrix products are torch's, those of attention included. All else is in `swarmbook.training.cpu_kernels`. The functions
take the arguments of their namesakes and mean the same, but a layer keeps other tensors for the way back.

Serves: every run trained on a CPU, by way of `swarmbook.training.stacked_stages`.
"""

import numba
import torch
from torch import Tensor

from swarmbook.training import cpu_kernels, llama

COMPILER = f"numba {numba.__version__}"  # it decides how numbers are rounded
EPS = cpu_kernels.f32(llama.NORM_EPS)


def layer(x, attention_norm, qkv, output, mlp_norm, gate_up, down, cos, sin) -> tuple[Tensor, ...]:
    """One transformer layer, as `llama.layer`: x after it, and what `layer_backward` needs of the way there."""
    x = x.contiguous()
    y = _norm(x, attention_norm)
    joined = _by_head(torch.bmm(y, qkv), cos)
    N, T, _, count, d = joined.shape
    heads = y.new_empty(3, N * count, T, d)
    _run(cpu_kernels.split_heads, joined, cos[:, 0], sin[:, 0], heads)
    q, k, v = heads
    weights = torch.bmm(q, k.mT)  # [N * heads, T, T]
    _run(cpu_kernels.causal_softmax, weights)
    o = _tokens_first(torch.bmm(weights, v), x)
    middle = torch.bmm(o, output)
    _run(cpu_kernels.add_norm, x, middle, mlp_norm.contiguous(), EPS, y)
    both = torch.bmm(y, gate_up)  # [C, n, 2H]
    h = both.new_empty(*both.shape[:2], both.shape[2] // 2)
    _run(cpu_kernels.swiglu, both.flatten(0, 1), h.flatten(0, 1))
    return torch.baddbmm(middle, h, down), x, heads, weights, o, middle, both


def layer_backward(
    dx, x, heads, weights, o, middle, both, attention_norm, qkv, output, mlp_norm, gate_up, down, cos, sin
) -> tuple[Tensor, ...]:
    """As `llama.layer_backward`: the gradient before the layer, those of the norms, and factors of the others.

    What the layer kept is overwritten, but for x.
    """
    dx = dx.contiguous()
    h = torch.bmm(dx, down.mT)
    _run(cpu_kernels.swiglu_backward, h.flatten(0, 1), both.flatten(0, 1))
    dmiddle = torch.bmm(both, gate_up.mT)
    normed, dmlp_norm = _norm_backward(dmiddle, middle, mlp_norm, dx)
    (q, k, v), dheads = heads, torch.empty_like(heads)
    do = _heads_first(torch.bmm(dmiddle, output.mT), v)
    scores = torch.bmm(do, v.mT)
    _run(cpu_kernels.causal_softmax_backward, weights, scores)
    torch.bmm(scores, k, out=dheads[0])
    torch.bmm(scores.mT, q, out=dheads[1])
    torch.bmm(weights.mT, do, out=dheads[2])
    dqkv = dx.new_empty(*dx.shape[:2], 3 * dx.shape[2])
    _run(cpu_kernels.merge_heads, dheads, cos[:, 0], sin[:, 0], _by_head(dqkv, cos))
    before = torch.bmm(dqkv, qkv.mT)
    first, dattention_norm = _norm_backward(before, x, attention_norm, dmiddle)
    return before, dattention_norm, dmlp_norm, h, dx, normed, both, o, dmiddle, first, dqkv


def cross_entropy(x: Tensor, final_norm: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """As `llama.cross_entropy`: nats of each token [R, n]."""
    return _cross_entropy(torch.bmm(_norm(x.contiguous(), final_norm), head), targets, 0.0)


def cross_entropy_backward(x, final_norm, head, targets, scale: float) -> tuple[Tensor, ...]:
    """As `llama.cross_entropy_backward`: nats [R], dx, dnorm, and the factors of dhead."""
    x = x.contiguous()
    z = torch.bmm(_norm(x, final_norm), head)
    nats = _cross_entropy(z, targets, scale)
    dx = torch.bmm(z, head.mT)
    normed, dnorm = _norm_backward(dx, x, final_norm, None)
    return nats.sum(1), dx, dnorm, normed, z


def _run(kernel, *arguments) -> None:
    """Call a kernel on the memory of contiguous tensors; what is no tensor goes as it is."""
    kernel(*(a.numpy() if isinstance(a, Tensor) else a for a in arguments))


def _norm(x, weight):
    y = torch.empty_like(x)
    _run(cpu_kernels.norm, x, weight.contiguous(), EPS, y)
    return y


def _norm_backward(dy, x, weight, past):
    """Turn dy into the gradient of x, in place; the norm once more, and the gradient of its weight."""
    normed, dweight = torch.empty_like(x), torch.empty_like(weight, memory_format=torch.contiguous_format)
    _run(cpu_kernels.norm_backward, dy, x, weight.contiguous(), EPS, past, normed, dweight)
    return normed, dweight


def _cross_entropy(z, targets, scale):
    nats = z.new_empty(targets.shape)
    _run(cpu_kernels.cross_entropy, z.flatten(0, 1), targets.flatten(), cpu_kernels.f32(scale), nats.flatten())
    return nats


def _by_head(qkv, cos):
    """qkv [C, n, 3D] of N whole sequences as [N, T, 3, heads, d]; cos [T, 1, d / 2]."""
    T, _, half = cos.shape
    return qkv.view(-1, T, 3, qkv.shape[-1] // (6 * half), 2 * half)


def _tokens_first(o, like):
    """[N * heads, T, d] as [C, n, D], laid out like the tokens of x."""
    C, n, D = like.shape
    T, d = o.shape[1:]
    return o.view(-1, D // d, T, d).transpose(1, 2).reshape(C, n, D)


def _heads_first(do, like):
    """[C, n, D] as [N * heads, T, d], laid out like `like`."""
    T, d = like.shape[1:]
    return do.view(-1, T, do.shape[-1] // d, d).transpose(1, 2).reshape(like.shape)
