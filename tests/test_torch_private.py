"""What training takes from torch beyond its public interface does what we take it for.

A test that fails here says which part of training breaks with this version of torch. What exists on CUDA alone is
computed there; elsewhere its signature is compared with the one that we call.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from swarmbook.training import torch_private

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=cuda)]


def drawn(*size, seed=0, **options):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(**options)


def assert_attention(forward, backward, atol, **options):
    """Output, logsumexp and gradients of causal attention against autograd in fp64."""
    q, k, v, do = (drawn(6, 32, 4, 16, seed=seed, **options).transpose(1, 2) for seed in range(4))
    o, logsumexp = forward(q, k, v)
    exact = [t.double().requires_grad_() for t in (q, k, v)]
    with sdpa_kernel(SDPBackend.MATH):
        expected = scaled_dot_product_attention(*exact, is_causal=True)
    scores = (exact[0] @ exact[1].mT / 4).masked_fill(torch.ones(32, 32).triu(1).bool().to(q.device), -torch.inf)
    found = o, logsumexp.view(6, 4, 32), *backward(do, q, k, v, o, logsumexp)
    expected = expected, scores.logsumexp(-1), *torch.autograd.grad(expected, exact, do.double())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=atol)


def test_attention_on_the_cpu_gives_its_logsumexp_and_takes_it_back():
    """Else no run trains on a CPU."""
    assert_attention(torch_private.cpu_attention, torch_private.cpu_attention_backward, 1e-5)


@cuda
@pytest.mark.parametrize("kernel", ["cudnn", "flash"])
def test_attention_on_cuda_gives_its_logsumexp_and_takes_it_back(kernel):
    """Else no run trains in bf16 on this GPU, or the backward pass goes through attention twice."""
    forward, backward = (getattr(torch_private, f"{kernel}_attention{way}") for way in ("", "_backward"))
    assert_attention(forward, backward, 5e-2, device="cuda", dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("_scaled_dot_product_cudnn_attention", "query key value attn_bias compute_log_sumexp dropout_p is_causal"),
        (
            "_scaled_dot_product_cudnn_attention_backward",
            "grad_out query key value out logsumexp philox_seed philox_offset attn_bias cum_seq_q cum_seq_k max_q "
            "max_k dropout_p is_causal",
        ),
        ("_scaled_dot_product_flash_attention", "query key value dropout_p is_causal"),
        (
            "_scaled_dot_product_flash_attention_backward",
            "grad_out query key value out logsumexp cum_seq_q cum_seq_k max_q max_k dropout_p is_causal philox_seed "
            "philox_offset",
        ),
    ],
)
def test_attention_on_cuda_takes_its_arguments_in_our_order(name, arguments):
    """Else a run on a GPU fails in its first step, or takes one number for another."""
    schema = getattr(torch.ops.aten, name).default._schema
    assert [argument.name for argument in schema.arguments][: len(arguments.split())] == arguments.split()


@pytest.mark.parametrize("device", DEVICES)
def test_the_kernel_that_attention_will_use_is_known_also_while_compiling(device):
    """Else compiled layers on a GPU are of another kernel, and their backward pass goes through attention twice."""
    q = drawn(6, 32, 4, 16, device=device, dtype=torch.bfloat16).transpose(1, 2)
    chosen = torch_private.attention_kernel(q)
    assert chosen in {backend.value for backend in SDPBackend.__members__.values()}
    assert (
        SDPBackend.CUDNN_ATTENTION.value,
        SDPBackend.FLASH_ATTENTION.value,
    ) == (torch_private.CUDNN, torch_private.FLASH)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch_private.attention_kernel(q) == SDPBackend.MATH.value
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert torch_private.attention_kernel(mode.from_tensor(q)) == chosen


def test_the_backward_pass_of_silu_is_that_of_autograd():
    """Else the gradient of every feed-forward layer is wrong."""
    dy, x = drawn(5, 7), drawn(5, 7, seed=1).requires_grad_()
    (expected,) = torch.autograd.grad(torch.nn.functional.silu(x), x, dy)
    torch.testing.assert_close(torch_private.silu_backward(dy, x.detach()), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_the_backward_pass_of_an_embedding_is_that_of_autograd_with_the_same_bits_each_time(device):
    """Else the gradient of the embedding is wrong, or a run on a GPU is not repeatable."""
    tokens, dy = torch.arange(4000, device=device) % 7, drawn(4000, 5, device=device)
    table = torch.zeros(9, 5, device=device, requires_grad=True)
    (expected,) = torch.autograd.grad(torch.nn.functional.embedding(tokens, table), table, dy)
    found = [torch_private.embedding_backward(dy, tokens, 9) for _ in range(5)]
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-4)
    assert all(torch.equal(found[0], again) for again in found)


@pytest.mark.parametrize(
    ("name", "overload", "arguments"),
    [
        ("bmm", "dtype", "self mat2 out_dtype"),
        ("bmm", "dtype_out", "self mat2 out_dtype out"),
        ("baddbmm", "dtype_out", "self batch1 batch2 out_dtype"),
    ],
)
def test_products_of_another_type_take_our_arguments(name, overload, arguments):
    """Else a run in bf16 fails in its first backward pass on a GPU."""
    schema = getattr(getattr(torch.ops.aten, name), overload)._schema
    assert [argument.name for argument in schema.arguments][: len(arguments.split())] == arguments.split()


@cuda
def test_products_of_bf16_are_summed_in_fp32():
    """Else gradients in bf16 lose what is smaller than their rounding."""
    a, b = (drawn(2, 64, 4096, seed=seed, device="cuda", dtype=torch.bfloat16) for seed in range(2))
    exact = torch.bmm(a.double(), b.double().mT)
    rounded = (torch.bmm(a, b.mT).double() - exact).abs().max()
    into = torch.empty(2, 64, 64, device="cuda")
    torch_private.product_into(into, a, b.mT, add=False)
    for times, found in ((1, torch_private.fp32_product(a, b.mT)), (1, into.clone())):
        assert (found.double() - times * exact).abs().max() < rounded / 10
    torch_private.product_into(into, a, b.mT, add=True)
    assert (into.double() - 2 * exact).abs().max() < rounded / 10


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_of_adam_is_that_of_torchs_optimizer_for_each_count_of_steps(device):
    """Else no run trains as Adam says, or a rebuilt stage starts with the bias correction of the others."""
    weights = [drawn(3, 4, seed=seed, device=device) for seed in range(2)]
    gradients = [drawn(3, 4, seed=seed + 9, device=device) for seed in range(2)]
    moments = [[torch.zeros_like(w) for w in weights] for _ in range(2)]
    theirs = [w.clone().requires_grad_() for w in weights]
    optimizers = [torch.optim.Adam([w], 1e-2, (0.8, 0.9), 1e-6) for w in theirs]
    for step in range(1, 4):
        for k, optimizer in enumerate(optimizers):
            if step > k:  # the second starts one step later
                theirs[k].grad = gradients[k].clone()
                optimizer.step()
        own = range(2) if step > 1 else range(1)
        counts = [torch.tensor(float(step - k), device=device) for k in own]
        tensors = [(weights[k], gradients[k], *(moment[k] for moment in moments)) for k in own]
        torch_private.adam_step(tensors, counts, 1e-2, (0.8, 0.9), 1e-6)
    for ours, expected in zip(weights, theirs, strict=True):
        torch.testing.assert_close(ours, expected.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_function_gives_what_it_gave(device):
    """Else no run with compiled layers trains, which every long run is."""

    def function(x, y):
        return torch.nn.functional.silu(x) * y + 1, (x * y).sum(-1)

    x, y = (drawn(8, 16, seed=seed, device=device) for seed in range(2))
    for ours, expected in zip(torch_private.compiled(function, [x, y])(x, y), function(x, y), strict=True):
        torch.testing.assert_close(ours, expected)


@cuda
def test_where_triton_is_said_to_be_torch_compiles():
    """Else "auto" would compile where it cannot, or not compile where it can."""
    if torch_private.has_triton():
        x = torch.ones(4, device="cuda")
        assert torch.equal(torch.compile(lambda x: x + 1)(x), x + 1)


def test_without_a_gpu_it_is_said_that_there_is_no_triton_for_it():
    """Else `compile=True` for CUDA fails later, and with an error that does not say what to install."""
    assert torch_private.has_triton() is False or torch.cuda.is_available()
