"""Exchanges in few bits, by frequencies, by gossip with momentum: against formulas and other implementations."""

import math

import numpy as np
import pytest
import torch
from scipy import fft

from swarmbook.config import run_config
from swarmbook.methods import chunked_dct
from swarmbook.methods.gossip_groups import MATCHINGS
from swarmbook.methods.quantisation import bytes_sent, quantised
from swarmbook.methods.sync import SYNCS, Exchange

pytestmark = pytest.mark.usefixtures("one_thread")
N = 4


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def steps_of(name, count=8, replicas=8, group=2, parameters=None, size=6, **numbers):
    """Outer steps from one phi of all, and the fast weights before each: [count] of (theta before, phi, buffers)."""
    phi = drawn(1, 1, 1, size, seed=9).expand(replicas, -1, -1, -1).clone()
    theta, buffers = phi.clone(), [torch.zeros_like(phi) for _ in SYNCS[name].buffers]
    rng, inner, found = np.random.default_rng(1), torch.Generator().manual_seed(2), []
    for step in range(count):
        theta.add_(torch.randn(theta.shape, generator=inner, dtype=theta.dtype))
        before, groups = theta.clone(), MATCHINGS["random"](replicas, step, rng, group)
        groups = groups if SYNCS[name].groups else np.arange(replicas)[None]
        x = Exchange([(theta, phi, *buffers)], groups, **numbers)
        SYNCS[name].rule(x, **(parameters or {}))
        assert torch.equal(theta, phi)
        found.append((before, phi.clone(), groups, x.costs))
    return phi, found


def nesterov(starts, befores, lr, momentum, mean=lambda each: each.mean(0)):
    """DiLoCo's slow weights after each exchange, by torch's SGD on the mean of theta - phi."""
    parameter = torch.nn.Parameter(starts.clone())
    sgd = torch.optim.SGD([parameter], lr=lr, momentum=momentum, nesterov=True)
    for before in befores:
        parameter.grad = parameter.detach() - mean(before)
        sgd.step()
        yield parameter.detach().clone()


# Few bits


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_an_entry_arrives_as_the_mean_of_its_bin(bits):
    values = drawn(3, 5, 50)
    found, bins = quantised(values, bits), 2**bits
    for each, said in zip(values.flatten(0, 1).numpy(), found.flatten(0, 1).numpy(), strict=True):
        edges = each.mean() + 6 * each.std(ddof=1) / bins * (np.arange(1, bins) - bins // 2 - 0.5)
        bin_of = np.digitize(each, edges)
        for b in np.unique(bin_of):
            np.testing.assert_allclose(said[bin_of == b], each[bin_of == b].mean(), atol=1e-12)
        assert said.sum() == pytest.approx(each.sum())
    assert (
        quantised(torch.full((2, 7), 3.0), bits).eq(3).all()
        and quantised(values[..., :1], bits).eq(values[..., :1]).all()
    )


def test_more_bits_say_more():
    values = drawn(4, 1000)
    errors = [float((quantised(values, bits) - values).square().mean()) for bits in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3
    best = {1: 1 - 2 / np.pi, 2: 0.1175, 4: 0.0095}  # of normal numbers (Lloyd and Max)
    assert all(error > 0.9 * least for error, least in zip(errors, best.values(), strict=False))


@pytest.mark.parametrize(("name", "bits"), [("DiLoCo, 4 bits", 4), ("DiLoCo, 2 bits", 2)])
def test_what_is_not_said_is_owed(name, bits):
    theta, phi = drawn(3, 2, 2, 5, 4), drawn(1, 2, 2, 5, 4, seed=1).expand(3, -1, -1, -1, -1).clone()
    start, momentum, error = (
        phi.clone(),
        0.1 * drawn(1, 2, 2, 5, 4, seed=2).repeat(3, 1, 1, 1, 1),
        drawn(3, 2, 2, 5, 4, seed=3),
    )
    owed, before = 0.9 * error + theta - phi, momentum.clone()
    x = Exchange([(theta, phi, momentum, error)], np.arange(3)[None], momentum=0.8, lr=0.5)
    SYNCS[name].rule(x, error_decay=0.9)
    said = quantised(owed.flatten(3), bits)
    gradient = quantised(said.mean(0, keepdim=True), bits).view(1, *theta.shape[1:])
    torch.testing.assert_close(error, owed - said.view_as(owed))
    torch.testing.assert_close(momentum, 0.8 * before + gradient)
    torch.testing.assert_close(phi, start + 0.5 * (gradient + 0.8 * momentum))
    assert torch.equal(theta, phi)
    sent = 4 * (math.ceil(20 * bits / 8) + 4 * (2**bits + 1))
    assert x.costs == {"sent in training": round(3 * 2 * 2 / 3 * sent), "serial hops": 4} and sent == 4 * bytes_sent(
        20, bits
    )


def test_what_an_absent_replica_would_say_it_owes():
    theta, phi, momentum, error = (
        drawn(3, 1, 1, 40),
        drawn(3, 1, 1, 40, seed=1),
        drawn(3, 1, 1, 40),
        drawn(3, 1, 1, 40, seed=2),
    )
    owed = 0.95 * error + theta - phi
    x = Exchange([(theta, phi, momentum, error)], np.arange(3)[None], present=np.array([True, False, True]))
    SYNCS["DiLoCo, 4 bits"].rule(x)
    torch.testing.assert_close(error[1], owed[1])
    assert not torch.allclose(error[0], owed[0], atol=0.1)


def test_without_errors_few_bits_are_diloco():
    """With so few entries that each has a bin of its own, nothing is lost."""
    _, few = steps_of("DiLoCo, 4 bits", size=1, momentum=0.9, lr=0.7)
    _, whole = steps_of("DiLoCo, Nesterov", size=1, momentum=0.9, lr=0.7)
    for a, b in zip(few, whole, strict=True):
        torch.testing.assert_close(a[1], b[1])


# DeMo


@pytest.mark.parametrize(("shape", "chunk"), [((12, 10), 4), ((16, 9), 64), ((7, 6), 5), ((15,), 4), ((8,), 64)])
def test_chunks_are_transformed_as_scipy_does(shape, chunk):
    values = drawn(2, 3, *shape)
    edges = [chunked_dct.chunk_of(size, chunk) for size in shape]
    assert all(size % e == 0 and e <= chunk for size, e in zip(shape, edges, strict=True))
    found = chunked_dct.frequencies(values, len(shape) == 2, chunk)
    for r, s in np.ndindex(2, 3):
        array, chunks = values[r, s].numpy(), []
        for at in np.ndindex(*(size // e for size, e in zip(shape, edges, strict=True))):
            part = array[tuple(slice(i * e, (i + 1) * e) for i, e in zip(at, edges, strict=True))]
            chunks.append(fft.dctn(part, norm="ortho").ravel())
        np.testing.assert_allclose(found[r, s].numpy(), chunks, atol=1e-12)
    torch.testing.assert_close(chunked_dct.from_frequencies(found, values, len(shape) == 2, chunk), values)


def demo_by_loops(gradients, momenta, decay, chunk, kept):
    """Algorithm 1 of arXiv 2411.19870 for one matrix, one chunk after another: the new gradient, and the momenta."""
    a, b = gradients[0].shape
    h, w = (chunked_dct.chunk_of(size, chunk) for size in (a, b))
    momenta, heard = [decay * m + g for m, g in zip(momenta, gradients, strict=True)], np.zeros((a, b))
    for i, j in np.ndindex(a // h, b // w):
        at = slice(i * h, (i + 1) * h), slice(j * w, (j + 1) * w)
        total, senders = np.zeros((h, w)), np.zeros((h, w))
        for m in momenta:
            found = fft.dctn(m[at], norm="ortho")
            said = np.abs(found) >= np.sort(np.abs(found), axis=None)[-min(kept, h * w)]
            m[at] -= fft.idctn(np.where(said, found, 0), norm="ortho")
            total, senders = total + np.where(said, found, 0), senders + said
        heard[at] = fft.idctn(total / np.maximum(senders, 1), norm="ortho")
    return heard, momenta


def test_demo_is_its_algorithm_on_each_matrix():
    gradient, momentum = drawn(3, 2, 2, 8, 12), drawn(3, 2, 2, 8, 12, seed=1)
    given = gradient.clone().numpy(), momentum.clone().numpy()
    x = Exchange([(gradient, None, momentum)], np.arange(3)[None])
    SYNCS["DeMo"].rule(x, decay=0.99, chunk=4, kept=5)
    for layer, stage in np.ndindex(2, 2):
        heard, momenta = demo_by_loops(*(list(each[:, layer, stage]) for each in given), 0.99, 4, 5)
        np.testing.assert_allclose(gradient[:, layer, stage].numpy(), np.stack([heard] * 3), atol=1e-12)
        np.testing.assert_allclose(momentum[:, layer, stage].numpy(), momenta, atol=1e-12)
    chunks = 2 * 2 * (2 * 3)
    assert x.costs == {"sent in training": 3 * 2 * chunks * 5 * (8 + 4), "serial hops": 2}


def test_demo_that_sends_all_is_all_reduce_and_an_absent_replica_keeps_its_momentum():
    gradient, momentum = drawn(3, 1, 1, 8, 6), torch.zeros(3, 1, 1, 8, 6, dtype=torch.float64)
    mean = gradient.mean(0)
    SYNCS["DeMo"].rule(Exchange([(gradient, None, momentum)], np.arange(3)[None]), kept=10**6)
    torch.testing.assert_close(gradient, mean.expand_as(gradient))
    assert momentum.abs().max() < 1e-12
    gradient, momentum = drawn(3, 1, 1, 20), drawn(3, 1, 1, 20, seed=1)
    owed = 0.5 * momentum + gradient
    x = Exchange([(gradient, None, momentum)], np.arange(3)[None], present=np.array([False, True, True]))
    SYNCS["DeMo"].rule(x, decay=0.5, kept=4)
    torch.testing.assert_close(momentum[0], owed[0])
    assert torch.equal(gradient[0], gradient[1])


TINY = {
    "data": "stories_toy", "stages": 2, "width": 16, "heads": 2, "hidden": 32, "sequence": 8, "microbatches": 2,
    "batch": 1, "steps": 6, "log_every": 1, "evaluate_every": 6, "held_out": 4, "replicas": N, "common_start": True,
    "sync_every": 3, "lr": 3e-3,
}  # fmt: skip


def test_with_the_sign_of_what_it_hears_demo_makes_steps_of_one_size(new_pack):
    pack = new_pack(run_config(**TINY, sync="DeMo", optimizer="signSGD", method={"kept": 4, "chunk": 8}), steps=1)
    start = new_pack(run_config(**TINY), steps=0)
    for name, weight in pack.fleet.state_dict().items():
        moved = (weight - start.fleet.state_dict()[name]).abs()
        assert (moved < 1e-6).logical_or((moved - 3e-3).abs() < 1e-6).all() and moved.max() > 2e-3


# Gossip with momentum, and two mixing steps


@pytest.mark.parametrize("gossip", [1.0, 0.7])
def test_gasloc_is_its_formula_with_the_laplacian_of_the_pairs(gossip):
    lr, momentum, weight = 0.6, 0.8, 1.0
    alpha = gossip / (2 * weight)
    _, found = steps_of("GASLoC", parameters={"gossip": gossip}, lr=lr, momentum=momentum)
    theta = drawn(1, 1, 1, 6, seed=9).numpy()[0, 0].repeat(8, 0)
    last = theta
    for before, phi, groups, costs in found:
        laplacian = np.zeros((8, 8))
        for i, j in [*groups, *groups[:, ::-1]]:
            e = np.eye(8)[i] - np.eye(8)[j]
            laplacian += 0.5 * weight * np.outer(e, e)
        y = theta + lr * (before.numpy()[:, 0, 0] - theta)
        theta, last = y - alpha * laplacian @ y + momentum * (y - last), y
        np.testing.assert_allclose(phi.numpy()[:, 0, 0], theta, atol=1e-12)
        assert costs == {"sent in training": 8 * 6 * 8, "serial hops": 1}
    means = nesterov(drawn(1, 1, 1, 6, seed=9)[0], [b for b, *_ in found], lr, momentum)
    for (_, phi, *_), mean in zip(found, means, strict=True):
        torch.testing.assert_close(phi.mean(0), mean)  # whatever the pairs


@pytest.mark.parametrize("group", [1, 2, 8])
def test_factored_gossip_mixes_slow_weights_over_all_and_outer_gradients_within_groups(group):
    lr, momentum = 0.7, 0.9
    _, found = steps_of("Factored Gossip DiLoCo", group=group, lr=lr, momentum=momentum)
    phi = drawn(1, 1, 1, 6, seed=9).numpy()[0, 0].repeat(8, 0)
    velocity = np.zeros_like(phi)
    for before, after, groups, costs in found:
        mix = np.zeros((8, 8))
        for members in groups:
            mix[np.ix_(members, members)] = 1 / len(members)
        gradient = mix @ (before.numpy()[:, 0, 0] - phi)
        velocity = momentum * velocity + gradient
        phi = np.full((8, 8), 1 / 8) @ phi + lr * (gradient + momentum * velocity)
        np.testing.assert_allclose(after.numpy()[:, 0, 0], phi, atol=1e-12)
        copy = 8 * 6
        blocking = 8 * copy * (group - 1)
        background = 8 * round(2 * 7 / 8 * copy)
        assert costs["sent in training"] == blocking + background and costs["sent in background"] == background
        assert costs["serial hops"] == 6 + (group > 1)
    means = nesterov(drawn(1, 1, 1, 6, seed=9)[0], [b for b, *_ in found], lr, momentum)
    for (_, after, *_), mean in zip(found, means, strict=True):
        torch.testing.assert_close(after.mean(0), mean)
    apart = [float(after.std(0).mean()) for _, after, *_ in found]
    assert (max(apart) < 1e-12) == (group == 8)


# Norms and directions apart


def test_decoupled_diloco_merges_norms_and_directions_of_each_tensor_apart():
    names = ["layers.qkv", "ends.embedding"]
    pairs = [
        (drawn(3, 2, 2, 5, 4), drawn(1, 2, 2, 5, 4, seed=1)),
        (drawn(3, 1, 1, 9, 4, seed=2), drawn(1, 1, 1, 9, 4, seed=3)),
    ]
    tensors = [(theta, phi.repeat(3, 1, 1, 1, 1), torch.zeros_like(theta)) for theta, phi in pairs]
    given = [(theta.clone().numpy(), phi.clone().numpy()) for theta, phi, _ in tensors]
    x = Exchange(tensors, np.arange(3)[None], momentum=0.0, lr=1.0, names=names)
    SYNCS["Decoupled DiLoCo"].rule(x)
    theta, phi = given[0]
    for at in np.ndindex(2, 2):
        each = [theta[(r, *at)] - phi[(r, *at)] for r in range(3)]
        norms = [np.linalg.norm(v) for v in each]
        direction = sum(v / n for v, n in zip(each, norms, strict=True)) / 3
        merged = np.mean(norms) * direction / np.linalg.norm(direction)
        np.testing.assert_allclose(tensors[0][1][(1, *at)].numpy(), phi[(1, *at)] + merged, atol=1e-12)
    theta, phi = given[1]
    np.testing.assert_allclose(tensors[1][1].numpy(), phi + (theta - phi).mean(0), atol=1e-12)
    assert x.costs == {"sent in training": 3 * 2 * 8 * (80 + 36), "serial hops": 2}


def test_a_merged_gradient_does_not_shrink_with_the_number_of_orthogonal_ones():
    theta = torch.eye(4, dtype=torch.float64)[:, None, None] * 2
    phi, delta = torch.zeros_like(theta), torch.zeros_like(theta)
    SYNCS["Decoupled DiLoCo"].rule(Exchange([(theta, phi, delta)], np.arange(4)[None], momentum=0.0, lr=1.0))
    torch.testing.assert_close(phi.flatten(1).norm(dim=1), torch.full((4,), 2.0, dtype=torch.float64))
    opposed = torch.tensor([1.0, -1.0], dtype=torch.float64).view(2, 1, 1, 1).expand(2, 1, 1, 3).clone()
    phi, delta = torch.zeros_like(opposed), torch.zeros_like(opposed)
    SYNCS["Decoupled DiLoCo"].rule(Exchange([(opposed, phi, delta)], np.arange(2)[None]))
    assert not phi.any()  # directions that cancel leave the mean, not a number that is none
    still = torch.zeros(2, 1, 1, 3)
    SYNCS["Decoupled DiLoCo"].rule(Exchange([(still, still.clone(), still.clone())], np.arange(2)[None]))
    assert torch.isfinite(still).all()


def test_of_one_replica_all_of_these_are_nesterov():
    _, wanted = steps_of("DiLoCo, Nesterov", replicas=1, group=1, momentum=0.9, lr=0.7)
    for name in ("Decoupled DiLoCo", "GASLoC", "Factored Gossip DiLoCo"):
        _, found = steps_of(name, replicas=1, group=1, momentum=0.9, lr=0.7)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a[1], b[1])
            assert not a[3]["sent in training"]


# MuLoCo


def test_muloco_is_replicas_that_train_with_muon_and_nesterovs_momentum_on_their_mean(new_pack):
    """Each replica alone for three steps with Muon from the same weights; torch's SGD on the mean; and again."""
    fields = {**TINY, "optimizer": "Muon", "lr": 0.02}
    pack = new_pack(run_config(**fields, sync="DiLoCo, Nesterov", outer_momentum=0.8, outer_lr=0.9), steps=3)
    alone = new_pack(run_config(**fields, sync="none"), steps=3)
    start = new_pack(run_config(**fields, sync="none"), steps=0).fleet.replica_views(range(N))
    theta = alone.fleet.replica_views(range(N))
    for name, weight in pack.fleet.replica_views(range(N)).items():
        (mean,) = nesterov(start[name][0], [theta[name]], 0.9, 0.8)
        torch.testing.assert_close(weight, mean.expand_as(weight), rtol=0, atol=1e-6)
        assert (weight - theta[name]).abs().max() > 1e-5
