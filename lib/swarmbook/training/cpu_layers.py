"""The layers and the loss of `swarmbook.training.llama` on a CPU in fp32: the same numbers to rounding, less memory traffic.

Matrix products and attention are torch's, all else is in `swarmbook.training.cpu_kernels`. The functions take the
arguments of their namesakes there, and mean the same; what a layer keeps for the way back is its own affair.

Serves: every run trained on a CPU, by way of `swarmbook.training.stacked_stages`.
"""

import torch
from torch import Tensor

from swarmbook.training import cpu_kernels, torch_private


def layer(x, attention_norm, qkv, output, mlp_norm, gate_up, down, cos, sin) -> tuple[Tensor, ...]:
    """One transformer layer, as `llama.layer`: x after it, and what `layer_backward` needs of the way there."""
    C, n, D = x.shape
    y = _norm(x, attention_norm)
    turned = torch.bmm(y, qkv)  # [C, n, 3D]
    _run(cpu_kernels.rotate, _heads(turned, cos), cos[:, 0], sin[:, 0])
    o, logsumexp = torch_private.cpu_attention(*_queries_keys_values(turned, cos))
    middle = torch.bmm(o.transpose(1, 2).view(C, n, D), output)
    _run(cpu_kernels.add_norm, x, middle, mlp_norm, y)
    both = torch.bmm(y, gate_up)  # [C, n, 2H]
    h = both.new_empty(C, n, both.shape[-1] // 2)
    _run(cpu_kernels.swiglu, both.flatten(0, 1), h.flatten(0, 1))
    return torch.baddbmm(middle, h, down), x, turned, o, logsumexp, middle, both


def layer_backward(
    dx, x, turned, o, logsumexp, middle, both, attention_norm, qkv, output, mlp_norm, gate_up, down, cos, sin
) -> tuple[Tensor, ...]:
    """As `llama.layer_backward`: the gradient before the layer, those of the norms, and factors of the others."""
    C, n, D = x.shape
    h = torch.bmm(dx, down.mT)
    dboth = torch.empty_like(both)
    _run(cpu_kernels.swiglu_backward, h.flatten(0, 1), both.flatten(0, 1), dboth.flatten(0, 1))
    dmiddle = torch.bmm(dboth, gate_up.mT)
    normed, dmlp_norm = _norm_backward(dmiddle, middle, mlp_norm, dx)
    flat = o.transpose(1, 2)  # [C * n / T, T, heads, head_width]
    do = torch.bmm(dmiddle, output.mT).view(flat.shape).transpose(1, 2)
    found = torch_private.cpu_attention_backward(do, *_queries_keys_values(turned, cos), o, logsumexp)
    dturned = torch.empty_like(turned)
    found = (d.transpose(1, 2).contiguous() for d in found)
    _run(cpu_kernels.rotate_back, *found, cos[:, 0], sin[:, 0], _heads(dturned, cos))
    before = torch.bmm(dturned, qkv.mT)
    first, dattention_norm = _norm_backward(before, x, attention_norm, dmiddle)
    factors = h, dx, normed, dboth, flat.view(C, n, D), dmiddle, first, dturned
    return before, dattention_norm, dmlp_norm, *factors


def cross_entropy(x: Tensor, final_norm: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """As `llama.cross_entropy`: nats of each token [R, n]."""
    return _cross_entropy(torch.bmm(_norm(x, final_norm), head), targets, 0.0)


def cross_entropy_backward(x, final_norm, head, targets, scale: float) -> tuple[Tensor, ...]:
    """As `llama.cross_entropy_backward`: nats [R], dx, dnorm, and the factors of dhead."""
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
    _run(cpu_kernels.norm, x, weight.contiguous(), y)
    return y


def _norm_backward(dy, x, weight, past):
    """Turn dy into the gradient of x, in place; the norm once more, and the gradient of its weight."""
    normed, dweight = torch.empty_like(x), torch.empty_like(weight, memory_format=torch.contiguous_format)
    _run(cpu_kernels.norm_backward, dy, x, weight.contiguous(), past, normed, dweight)
    return normed, dweight


def _cross_entropy(z, targets, scale):
    nats = z.new_empty(targets.shape)
    _run(cpu_kernels.cross_entropy, z.flatten(0, 1), targets.flatten(), cpu_kernels.f32(scale), nats.flatten())
    return nats


def _heads(turned, cos):
    """qkv [C, n, 3D] of whole sequences as [C * n / T, T, 3, heads, head_width]."""
    T, half = len(cos), cos.shape[-1]
    return turned.view(-1, T, 3, turned.shape[-1] // (6 * half), 2 * half)


def _queries_keys_values(turned, cos):
    return (t.transpose(1, 2) for t in _heads(turned, cos).unbind(2))
