"""All that training takes from torch beyond its public interface.

Torch may change or remove any of these without notice. Each function says why the public interface does not do, and has
a test in `tests/test_torch_private.py` that says what breaks without it.

Serves: every trained run, by way of `swarmbook.training.llama`, `fleet`, `adam` and `device`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

CUDNN, FLASH = 3, 1  # attention kernels as `attention_kernel` numbers them (torch.nn.attention.SDPBackend)


def attention_kernel(q: Tensor) -> int:
    """The kernel that torch chooses for causal attention on real tensors like q [sequences, heads, T, head_width].

    Why: `torch.nn.functional.scaled_dot_product_attention` chooses without saying what, and a compiler, which looks at
    tensors without content, would choose another kernel than the one that runs.
    """
    with _disable_current_modes():
        like = torch.empty(1, q.shape[2], 1, q.shape[3], dtype=q.dtype, device=q.device).transpose(1, 2)
        return torch._fused_sdp_choice(like, like, like, None, 0.0, True)


# Why the attention kernels themselves: the public function does not return the logsumexp, without which the backward
# pass has to go through the forward pass again; and it needs autograd, which keeps more than our backward pass takes.


def cpu_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention [sequences, heads, T, head_width] on the CPU, and its logsumexp [sequences, heads, T]."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)


def cpu_attention_backward(do, q, k, v, o, logsumexp) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, given that of the output o of `cpu_attention`."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(do, q, k, v, o, logsumexp, 0.0, True)


def cudnn_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention by cuDNN, and its logsumexp [sequences, heads, T, 1]."""
    return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True)[:2]


def cudnn_attention_backward(do, q, k, v, o, logsumexp) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, given that of the output o of `cudnn_attention`."""
    T, unused = q.shape[2], _no_dropout(q)
    backward = torch.ops.aten._scaled_dot_product_cudnn_attention_backward
    return backward(do, q, k, v, o, logsumexp, unused, unused, None, None, None, T, T, 0.0, True)


def flash_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Causal flash attention on CUDA, and its logsumexp [sequences, heads, T]; head_width a multiple of 8."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[:2]


def flash_attention_backward(do, q, k, v, o, logsumexp) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, given that of the output o of `flash_attention`."""
    T, unused = q.shape[2], _no_dropout(q)
    backward = torch.ops.aten._scaled_dot_product_flash_attention_backward
    return backward(do, q, k, v, o, logsumexp, None, None, T, T, 0.0, True, unused, unused)


def _no_dropout(q: Tensor) -> Tensor:
    """What stands for the seeds of a dropout that there is none of."""
    return q.new_empty((), dtype=torch.int64)


def silu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """Gradient of x, given that of silu(x). Why: one kernel, where its formula in public functions takes five."""
    return torch.ops.aten.silu_backward(dy, x)


def embedding_backward(dy: Tensor, tokens: Tensor, rows: int) -> Tensor:
    """Gradient [rows, D] of an embedding table, given dy [n, D] of its rows `tokens` [n].

    Why: `Tensor.index_add_` does not give the same bits each time on CUDA.
    """
    return torch.ops.aten.embedding_dense_backward(dy, tokens, rows, -1, False)


def product_into(gradient: Tensor, a: Tensor, b: Tensor, add: bool) -> None:
    """Write or add a [C, k, n] times b [C, n, m], both in bf16 on CUDA, to a gradient [C, k, m] in fp32.

    Why: `torch.bmm` rounds the sums to the type of its factors, and a conversion afterwards cannot undo that.
    """
    if add:
        torch.ops.aten.baddbmm.dtype_out(gradient, a, b, gradient.dtype, out=gradient)
    else:
        torch.ops.aten.bmm.dtype_out(a, b, gradient.dtype, out=gradient)


def fp32_product(a: Tensor, b: Tensor) -> Tensor:
    """a [C, k, n] times b [C, n, m], both in bf16 on CUDA, in fp32. Why: as for `product_into`."""
    return torch.ops.aten.bmm.dtype(a, b, torch.float32)


def adam_step(
    tensors: Sequence[tuple[Tensor, ...]],
    steps: list[Tensor],
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """One step of Adam in place. tensors: (weight, gradient, first and second moment) of each; steps: with this one.

    Why: `torch.optim.Adam` has one count of steps for each parameter; ours differ between the cells of one tensor.
    """
    torch._fused_adam_(
        *map(list, zip(*tensors, strict=True)),
        [],
        steps,
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )


def compiled(function: Callable, tensors: Sequence[Tensor]) -> Callable:
    """A function of tensors, compiled for these shapes and strides alone, which it does not check.

    Why: `torch.compile` checks its guards at each call, a tenth of a step at the sizes of a laptop.
    """
    import torch._inductor  # seconds to load, wanted only here
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(function, tracing_mode="fake")(*tensors)
    return torch._inductor.compile(graph, list(tensors), options={"size_asserts": False})


def has_triton() -> bool:
    """Whether there is a Triton for this GPU. Why: without one, compilation fails, and torch does not tell before."""
    from torch.utils._triton import has_triton

    return has_triton()
