"""Stacked Adam is torch.optim.Adam on each cell."""

import math

import pytest
import torch

from swarmbook.methods.model_size import Shape
from swarmbook.training.fleet import Fleet
from swarmbook.training.inner_optimizer import InnerOptimizer
from swarmbook.training.learning_rate import schedule

SHAPE = Shape(stages=3, layers_per_stage=2, width=8, heads=2, hidden=12, vocabulary=19)
R, S = 2, SHAPE.stages


def weights(fleet):
    cells = {(r, s): fleet.stage(r, s) for r in range(R) for s in range(S)}
    return cells | {(r, S): fleet.ends(r) for r in range(R)}


def gradients(fleet):
    cells = {(r, s): fleet.stage_gradient(r, s) for r in range(R) for s in range(S)}
    return cells | {(r, S): fleet.ends_gradient(r) for r in range(R)}


def twins(fleet, lr, **options):
    """One torch.optim.Adam per cell over copies of its weights."""
    copies = {cell: [w.clone().requires_grad_() for w in view.values()] for cell, view in weights(fleet).items()}
    return copies, {cell: torch.optim.Adam(copy, lr, **options) for cell, copy in copies.items()}


def draw(fleet, copies, step):
    """The same random gradients for both, of sizes that differ by cell."""
    generator = torch.Generator().manual_seed(step)
    for (r, s), view in gradients(fleet).items():
        for gradient, copy in zip(view.values(), copies[r, s], strict=True):
            gradient.copy_(torch.randn(gradient.shape, generator=generator) * 10.0 ** (s - r - 2))
            copy.grad = gradient.clone()


def assert_same(fleet, copies):
    for cell, view in weights(fleet).items():
        for ours, theirs in zip(view.values(), copies[cell], strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("disturb", ["nothing", "reset", "scale", "both"])
def test_each_cell_is_torch_adam_over_20_steps(disturb):
    fleet = Fleet(SHAPE, [1, 2], device="cpu", compile=False)
    options = {"betas": (0.8, 0.95), "eps": 1e-6}
    adam = InnerOptimizer(fleet, 3e-3, beta1=0.8, beta2=0.95, eps=1e-6)
    copies, optimizers = twins(fleet, 3e-3, **options)
    for step in range(20):
        draw(fleet, copies, step)
        if step == 7 and disturb in ("reset", "both"):
            for cell in ((1, 1), (0, S)):
                adam.reset(*cell)
                optimizers[cell] = torch.optim.Adam(copies[cell], 3e-3, **options)
        if step == 9 and disturb in ("scale", "both"):
            adam.lr_scale[0, 2] = 1.5
            adam.lr_scale[1, S] = 0.0
            optimizers[0, 2].param_groups[0]["lr"] *= 1.5
            optimizers[1, S].param_groups[0]["lr"] *= 0.0
        adam.step()
        for optimizer in optimizers.values():
            optimizer.step()
        assert_same(fleet, copies)


@pytest.mark.parametrize("width", [8, 12, 16, 20, 48])
def test_a_cell_has_the_same_bits_whatever_happens_to_others(width):
    """Else a run would have other bits beside one that fails, and `verify` would call it wrong."""
    shape = Shape(stages=3, layers_per_stage=2, width=width, heads=2, hidden=12, vocabulary=19)
    states = []
    for boost in (1.0, 1.1):
        fleet = Fleet(shape, [1, 2], device="cpu", compile=False)
        adam = InnerOptimizer(fleet, 1e-3)
        generator = torch.Generator().manual_seed(0)
        for step in range(20):
            for gradient in fleet.named_gradients().values():
                gradient.copy_(torch.randn(gradient.shape, generator=generator) * 10.0 ** (-(step % 4)))
            adam.lr_scale[0, 1] = boost
            adam.step()
        states.append(every_tensor(adam, 1))
    assert all(map(torch.equal, *states))


def test_a_given_rate_stands_in_for_the_base():
    fleet = Fleet(SHAPE, [1, 2], device="cpu", compile=False)
    adam = InnerOptimizer(fleet, 1.0)
    copies, optimizers = twins(fleet, 2e-3)
    for step in range(3):
        draw(fleet, copies, step)
        adam.step(lr=2e-3)
        for optimizer in optimizers.values():
            optimizer.step()
    assert_same(fleet, copies)


def test_moments_are_views_of_one_cell():
    fleet = Fleet(SHAPE, [1, 2], device="cpu", compile=False)
    adam = InnerOptimizer(fleet, 1e-3)
    copies, optimizers = twins(fleet, 1e-3)
    draw(fleet, copies, 0)
    adam.step()
    for cell, optimizer in optimizers.items():
        optimizer.step()
        for (m, v), copy in zip(adam.moments(*cell).values(), copies[cell], strict=True):
            torch.testing.assert_close(m, optimizer.state[copy]["exp_avg"])
            torch.testing.assert_close(v, optimizer.state[copy]["exp_avg_sq"])
    adam.moments(1, 2)["qkv"][0].fill_(5.0)
    assert (adam.moments(1, 2)["qkv"][0] == 5).all()
    adam.reset(1, 2)
    assert all((t == 0).all() for pair in adam.moments(1, 2).values() for t in pair)
    assert adam.moments(0, 2)["qkv"][0].abs().max() > 0
    assert adam.steps.tolist() == [[1, 1, 1, 1], [1, 1, 0, 1]]


def test_state_of_some_replicas():
    fleet = Fleet(SHAPE, [1, 2], device="cpu", compile=False)
    adam = InnerOptimizer(fleet, 1e-3)
    copies, _ = twins(fleet, 1e-3)
    draw(fleet, copies, 0)
    adam.step()
    adam.lr_scale[1, 0] = 1.1
    adam.reset(1, 2)
    other = InnerOptimizer(Fleet(SHAPE, [3], device="cpu", compile=False), 1e-3)
    other.load_state_dict(adam.state_dict([1]))
    assert other.steps.tolist() == [[1, 1, 0, 1]]
    assert other.lr_scale.tolist() == [[1.1, 1, 1, 1]]
    for stage in range(S + 1):
        for name, pair in other.moments(0, stage).items():
            assert all(map(torch.equal, pair, adam.moments(1, stage)[name]))
    with pytest.raises(ValueError, match="as many replicas"):
        adam.load_state_dict(other.state_dict())


def every_tensor(adam, r):
    """Weights and moments of one replica."""
    cells = [(adam.fleet.stage(r, s), adam.moments(r, s)) for s in range(S)]
    cells.append((adam.fleet.ends(r), adam.moments(r, S)))
    return [t.clone() for view, moments in cells for name, w in view.items() for t in (w, *moments[name])]


def test_bf16_storage_rounds_weights_and_moments_of_the_given_replicas_only():
    fleet = Fleet(SHAPE, [1, 2], device="cpu", compile=False)
    adam = InnerOptimizer(fleet, 1e-3)
    draw(fleet, twins(fleet, 1e-3)[0], 0)
    adam.step()
    before = [every_tensor(adam, r) for r in range(R)]
    assert sum(not torch.equal(t, t.bfloat16().float()) for t in before[1]) > len(before[1]) - 2 * S  # but the gains
    adam.round_to_bf16(range(1, 2))
    assert all(map(torch.equal, every_tensor(adam, 0), before[0]))
    assert all(map(torch.equal, every_tensor(adam, 1), [t.bfloat16().float() for t in before[1]]))
    assert all(t.dtype == torch.float32 for t in every_tensor(adam, 1))
    assert adam.steps.tolist() == [[1] * (S + 1)] * R


def test_in_bf16_the_second_moment_cannot_decay():
    """0.999 v is nearer to v than to the next smaller number of 8 significant bits."""
    fleet = Fleet(SHAPE, [1, 2], device="cpu", compile=False)
    adam = InnerOptimizer(fleet, 1e-30)
    start = torch.tensor(1e-4).bfloat16().float()
    for s in range(S + 1):
        for r in range(R):
            for gradient in gradients(fleet)[r, s].values():
                gradient.fill_(1e-6)
            for m, v in adam.moments(r, s).values():
                m.fill_(1.0)
                v.fill_(start)
    for _ in range(1000):
        adam.step()
        adam.round_to_bf16(range(1, 2))
    for s in range(S + 1):
        for (m, v), (m_bf16, v_bf16) in zip(adam.moments(0, s).values(), adam.moments(1, s).values(), strict=True):
            torch.testing.assert_close(v, (start * 0.999**1000).expand_as(v), rtol=1e-3, atol=0)
            assert (v_bf16 == start).all()
            assert (m < 2e-6).all() and (m_bf16 < 1e-4).all()  # 0.9 m is far enough from m


def test_schedules():
    constant = schedule("constant", 2.0, warmup=4, steps=10)
    assert [constant(step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    cosine = schedule("cosine", 2.0, warmup=10, steps=110, final=0.1)
    assert [cosine(4), cosine(9), cosine(10)] == [1.0, 2.0, 2.0]
    assert math.isclose(cosine(60), 1.1)
    assert math.isclose(cosine(110), 0.2)
    assert math.isclose(cosine(500), 0.2)
    assert schedule("cosine", 1.0, warmup=0, steps=5)(0) == 1.0
    with pytest.raises(ValueError, match="'linear'.*'cosine'"):
        schedule("linear", 1.0, 0, 1)
    with pytest.raises(ValueError, match="warmup=9.*steps=8"):
        schedule("constant", 1.0, 9, 8)
