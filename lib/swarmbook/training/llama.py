"""The LLaMA of the papers, forward and backward, as pure functions over stacked weights.

- every function works on C cells at once: weights [C, ...] against activations [C, n, D] in batched matmuls
- RMSNorm before each half, rotary positions (half-split), SwiGLU, no biases, untied head
- the backward pass is written out: it computes the cheap activations again, and hands out the factors of the
  weight gradients, so that these can be multiplied straight into where they are stored
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from swarmbook.training import torch_private

NORM_EPS = 1e-6
ROPE_THETA = 1e4
# The longest sequences of which a layer keeps the attention that each token pays to each, by device
ATTENTION_KEPT = {"cpu": 512, "cuda": 0}


def draw(weights: dict[str, Tensor], generator: torch.Generator, std: float) -> None:
    """Fill weights in place as LLaMA starts: norms 1, all else N(0, std^2), drawn on the CPU in this order."""
    for name, tensor in weights.items():
        if name.endswith("norm"):
            tensor.fill_(1.0)
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * std)


def rotary(length: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each [T, 1, head_width / 2], fp32."""
    frequency = ROPE_THETA ** (-torch.arange(0, head_width, 2, device=device) / head_width)
    angle = torch.arange(length, device=device)[:, None, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on x [..., T, heads, head_width], half-split; with -sin, their inverse."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm of x [C, n, D] with weight [C, D]."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS) * weight[:, None]


def norm_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [C, n, D] and weight [C, D]; and the norm itself, once more."""
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)
    unit = x * scale
    g = dy * weight[:, None]
    dx = scale * (g - unit * (g * unit).mean(-1, keepdim=True))
    return dx, (dy * unit).sum(1), unit * weight[:, None]


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention on [sequences, heads, T, head_width], and the logsumexp that its backward pass takes.

    That is [sequences, heads, T] of flash attention, [sequences, heads, T, 1] of cuDNN's, and empty of other kernels,
    whose forward pass the backward pass repeats.
    """
    if q.device.type == "cpu":
        return torch_private.cpu_attention(q, k, v)
    kernel = torch_private.attention_kernel(q)
    if kernel == torch_private.CUDNN:
        return torch_private.cudnn_attention(q, k, v)
    if kernel == torch_private.FLASH and q.shape[-1] % 8 == 0:  # torch pads others, and autograd cuts
        return torch_private.flash_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True), q.new_empty(0)


def attention_backward(do, q, k, v, o, logsumexp) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, given that of the output o; o and logsumexp are those of `attention`."""
    if q.device.type == "cpu":
        return torch_private.cpu_attention_backward(do, q, k, v, o, logsumexp)
    if logsumexp.dim() == 4:
        return torch_private.cudnn_attention_backward(do, q, k, v, o, logsumexp)
    if logsumexp.dim() == 3:
        return torch_private.flash_attention_backward(do, q, k, v, o, logsumexp)
    with torch.enable_grad():
        q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return torch.autograd.grad(o, (q, k, v), do)


def layer(x, attention_norm, qkv, output, mlp_norm, gate_up, down, cos, sin) -> tuple[Tensor, ...]:
    """One transformer layer: x [C, n, D] of n / T sequences -> x after it, and what the way back needs.

    Matmuls run in the type of the matrices, the residual stream x and the norms in fp32.
    """
    C, n, D = x.shape
    T, heads = len(cos), D // (2 * cos.shape[-1])
    y = torch.bmm(norm(x, attention_norm).to(qkv.dtype), qkv)  # [C, n, 3D]
    q, k, v = y.view(-1, T, 3, heads, D // heads).unbind(2)
    q, k, v = (t.transpose(1, 2) for t in (rotate(q, cos, sin), rotate(k, cos, sin), v))
    o, logsumexp = attention(q, k, v)  # [C * n / T, heads, T, head_width]
    middle = x + torch.bmm(o.transpose(1, 2).reshape(C, n, D), output)
    both = torch.bmm(norm(middle, mlp_norm).to(qkv.dtype), gate_up)  # [C, n, 2H]
    gate, up = both.chunk(2, -1)
    return middle + torch.bmm(F.silu(gate) * up, down), x, q, k, v, o, logsumexp, middle, both


def layer_backward(
    dx, x, q, k, v, o, logsumexp, middle, both, attention_norm, qkv, output, mlp_norm, gate_up, down, cos, sin
) -> tuple[Tensor, ...]:
    """Gradient after the layer -> gradient before it, gradients of the norms [C, D], factors of the others.

    The gradient of a matrix [C, in, out] is the product of [C, n, in], transposed, and [C, n, out]; these two
    follow for down, gate_up, output and qkv in turn.
    """
    C, n, D = x.shape
    low = qkv.dtype
    dy = dx.to(low)
    gate, up = both.chunk(2, -1)
    dh = torch.bmm(dy, down.mT)
    silu = F.silu(gate)
    h = silu * up
    dboth = torch.cat([torch_private.silu_backward(dh * up, gate), dh * silu], -1)
    through, dmlp_norm, normed = norm_backward(torch.bmm(dboth, gate_up.mT), middle, mlp_norm)
    dmiddle = dx + through
    do = dmiddle.to(low)
    factors = [(h, dy), (normed.to(low), dboth), (o.transpose(1, 2).reshape(C, n, D), do)]
    do = torch.bmm(do, output.mT).view(o.shape[0], o.shape[2], o.shape[1], o.shape[3]).transpose(1, 2)
    dq, dk, dv = (t.transpose(1, 2) for t in attention_backward(do, q, k, v, o, logsumexp))
    dqkv = torch.stack([rotate(dq, cos, -sin), rotate(dk, cos, -sin), dv], 2).view(C, n, 3 * D)
    through, dattention_norm, normed = norm_backward(torch.bmm(dqkv, qkv.mT), x, attention_norm)
    factors.append((normed.to(low), dqkv))
    return dmiddle + through, dattention_norm, dmlp_norm, *(t for pair in factors for t in pair)


def logits(x: Tensor, final_norm: Tensor, head: Tensor) -> Tensor:
    """x [R, n, D] -> [R, n, V]."""
    return torch.bmm(norm(x, final_norm).to(head.dtype), head)


def cross_entropy(x: Tensor, final_norm: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """x [R, n, D], targets [R, n] -> nats of each token [R, n]."""
    z = logits(x, final_norm, head).float()
    return F.cross_entropy(z.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def cross_entropy_backward(x, final_norm, head, targets, scale: float) -> tuple[Tensor, ...]:
    """Nats summed over tokens [R]; and with a gradient of `scale` on each: dx, dnorm, factors of dhead."""
    log_p = F.log_softmax(logits(x, final_norm, head).float(), -1)
    hit = targets[..., None]
    losses = -log_p.gather(-1, hit)
    dz = log_p.exp_()  # of the nats, unscaled: what follows from it is smaller, and scaled there
    dz = dz.scatter_(-1, hit, dz.gather(-1, hit) - 1.0).to(head.dtype)
    dx, dnorm, normed = norm_backward(torch.bmm(dz, head.mT) * scale, x, final_norm)
    return losses.sum((1, 2)), dx, dnorm, (normed * scale).to(head.dtype), dz
