"""Kernels for a CPU, fp32: what a layer does beside its matrix products, each in one pass over memory.

Arrays are NumPy views of contiguous tensors. C cells stand side by side, n tokens each; D is the width, H the hidden
width, V the vocabulary. Numba compiles a kernel when it is first called, and keeps it on disk. Sums may be taken in
another order than they are written (`reassoc`), but NaN and infinity stay what they are, because runs that diverge are
recognised by them.

Serves: every run trained on a CPU, by way of `swarmbook.training.cpu_layers`.
"""

import math
from functools import partial

import numpy as np
from numba import njit

from swarmbook.records.machine_code import compiled

f32 = np.float32
ONE, HALF, ZERO = f32(1.0), f32(0.5), f32(0.0)
LOG2E, LN2_HIGH, LN2_LOW, LEAST = f32(1.44269504), f32(0.693359375), f32(-2.12194440e-4), f32(-64.0)
P2, P3, P4, P5, P6 = f32(0.5), f32(1.6666665459e-1), f32(4.1665795894e-2), f32(8.3334519073e-3), f32(1.3981999507e-3)
P7 = f32(1.9875691500e-4)
LOWEST = f32(-1e30)  # of a score that does not count

fast = {"reassoc", "contract", "arcp", "nsz"}
kernel = partial(compiled, nogil=True, fastmath=fast, error_model="numpy")


@njit(inline="always")
def _exp(x):
    """e to the x <= 0, to 2e-7 of it, and e to the -64 below that, far from subnormal numbers, which are slow."""
    x = LEAST if x < LEAST else x
    n = np.int32(x * LOG2E - HALF)
    r = (x - f32(n) * LN2_HIGH) - f32(n) * LN2_LOW
    p = ((((P7 * r + P6) * r + P5) * r + P4) * r + P3) * r + P2
    return (p * r * r + r + ONE) * np.int32((n + 127) << 23).view(np.float32)


@njit(inline="always")
def _sigmoid(x):
    e = _exp(-abs(x))
    return (ONE if x >= ZERO else e) / (ONE + e)


@kernel
def norm(x, weight, eps, out):
    """out [C, n, D] = RMSNorm of x [C, n, D] with weight [C, D]."""
    C, n, D = x.shape
    for c in range(C):
        for i in range(n):
            total = ZERO
            for d in range(D):
                total += x[c, i, d] * x[c, i, d]
            scale = ONE / math.sqrt(total / f32(D) + eps)
            for d in range(D):
                out[c, i, d] = x[c, i, d] * scale * weight[c, d]


@kernel
def add_norm(x, y, weight, eps, out):
    """y [C, n, D] += x, and out = RMSNorm of that with weight [C, D]."""
    C, n, D = x.shape
    for c in range(C):
        for i in range(n):
            total = ZERO
            for d in range(D):
                both = x[c, i, d] + y[c, i, d]
                y[c, i, d] = both
                total += both * both
            scale = ONE / math.sqrt(total / f32(D) + eps)
            for d in range(D):
                out[c, i, d] = y[c, i, d] * scale * weight[c, d]


@kernel
def norm_backward(dy, x, weight, eps, past, normed, dweight):
    """dy [C, n, D] of the RMSNorm of x becomes the gradient of x, to which `past` is added: what goes past the norm.

    normed [C, n, D] = that norm; dweight [C, D] = the gradient of its weight. past: like x, or None.
    """
    C, n, D = x.shape
    for c in range(C):
        for d in range(D):
            dweight[c, d] = ZERO
        for i in range(n):
            total = ZERO
            along = ZERO
            for d in range(D):
                total += x[c, i, d] * x[c, i, d]
                along += dy[c, i, d] * weight[c, d] * x[c, i, d]
            scale = ONE / math.sqrt(total / f32(D) + eps)
            along = along * scale * scale / f32(D)
            for d in range(D):
                unit = x[c, i, d] * scale
                normed[c, i, d] = unit * weight[c, d]
                dweight[c, d] += dy[c, i, d] * unit
                dx = scale * (dy[c, i, d] * weight[c, d] - x[c, i, d] * along)
                dy[c, i, d] = dx if past is None else dx + past[c, i, d]


@kernel
def swiglu(both, h):
    """h [n, H] = silu(gate) * up, of both [n, 2H]."""
    n, H = h.shape
    for i in range(n):
        for j in range(H):
            gate = both[i, j]
            h[i, j] = gate * _sigmoid(gate) * both[i, H + j]


@kernel
def swiglu_backward(dh, both):
    """both [n, 2H] becomes its gradient, given dh [n, H]; dh becomes h, the forward value."""
    n, H = dh.shape
    for i in range(n):
        for j in range(H):
            gate, up, dy = both[i, j], both[i, H + j], dh[i, j]
            s = _sigmoid(gate)
            silu = gate * s
            dh[i, j] = silu * up
            both[i, H + j] = dy * silu
            both[i, j] = dy * up * (s + silu * (ONE - s))


@kernel
def split_heads(qkv, cos, sin, parts):
    """parts [3, N * heads, T, d] of qkv [N, T, 3, heads, d]: queries and keys at their rotary positions, and values.

    cos, sin: [T, d / 2]. Queries are divided by sqrt(d).
    """
    N, T, _, heads, d = qkv.shape
    half, factor = d // 2, ONE / f32(math.sqrt(d))
    for m in range(N):
        for t in range(T):
            for h in range(heads):
                for e in range(half):
                    a, b, c, s = qkv[m, t, 0, h, e], qkv[m, t, 0, h, half + e], cos[t, e] * factor, sin[t, e] * factor
                    parts[0, m * heads + h, t, e] = a * c - b * s
                    parts[0, m * heads + h, t, half + e] = b * c + a * s
                for e in range(half):
                    a, b, c, s = qkv[m, t, 1, h, e], qkv[m, t, 1, h, half + e], cos[t, e], sin[t, e]
                    parts[1, m * heads + h, t, e] = a * c - b * s
                    parts[1, m * heads + h, t, half + e] = b * c + a * s
                for e in range(d):
                    parts[2, m * heads + h, t, e] = qkv[m, t, 2, h, e]


@kernel
def merge_heads(parts, cos, sin, qkv):
    """The gradient qkv of what `split_heads` was given, from the gradient parts of what it gave."""
    N, T, _, heads, d = qkv.shape
    half, factor = d // 2, ONE / f32(math.sqrt(d))
    for m in range(N):
        for t in range(T):
            for h in range(heads):
                for e in range(half):
                    a, b = parts[0, m * heads + h, t, e], parts[0, m * heads + h, t, half + e]
                    c, s = cos[t, e] * factor, sin[t, e] * factor
                    qkv[m, t, 0, h, e] = a * c + b * s
                    qkv[m, t, 0, h, half + e] = b * c - a * s
                for e in range(half):
                    a, b = parts[1, m * heads + h, t, e], parts[1, m * heads + h, t, half + e]
                    c, s = cos[t, e], sin[t, e]
                    qkv[m, t, 1, h, e] = a * c + b * s
                    qkv[m, t, 1, h, half + e] = b * c - a * s
                for e in range(d):
                    qkv[m, t, 2, h, e] = parts[2, m * heads + h, t, e]


@njit(fastmath={"nnan", "nsz"})
def _largest(row):
    """The largest number of a row, where NaN may be overlooked."""
    most = row[0]
    for v in range(len(row)):
        most = row[v] if row[v] > most else most
    return most


@kernel
def causal_softmax(scores):
    """Scores [B, T, T] of queries and keys become the weights of keys up to the query; those of later ones are 0."""
    B, T, _ = scores.shape
    for b in range(B):
        for i in range(T):
            row = scores[b, i]
            stop = min(T, i // 16 * 16 + 16)  # whole vectors
            row[i + 1 : stop] = LOWEST
            most, total = _largest(row[:stop]), ZERO
            for j in range(stop):
                e = _exp(row[j] - most)
                row[j] = e
                total += e
            part = ONE / total
            for j in range(stop):
                row[j] *= part
            row[i + 1 :] = ZERO


@kernel
def causal_softmax_backward(weights, dweights):
    """Gradients of what `causal_softmax` gave become those of what it was given, both [B, T, T]."""
    B, T, _ = weights.shape
    for b in range(B):
        for i in range(T):
            row, drow = weights[b, i], dweights[b, i]
            stop = min(T, i // 16 * 16 + 16)  # whole vectors
            along = ZERO
            for j in range(stop):
                along += row[j] * drow[j]
            for j in range(stop):
                drow[j] = row[j] * (drow[j] - along)
            drow[stop:] = ZERO


@kernel
def cross_entropy(z, targets, scale, nats):
    """nats [n] of targets [n] given logits z [n, V]; unless scale is 0, z becomes scale * their gradient."""
    n, V = z.shape
    for i in range(n):
        row, target = z[i], targets[i]
        most, hit, total = _largest(row), row[target], ZERO
        if scale == ZERO:
            for v in range(V):
                total += _exp(row[v] - most)
        else:
            for v in range(V):
                e = _exp(row[v] - most)
                row[v] = e
                total += e
            part = scale / total
            for v in range(V):
                row[v] *= part
            row[target] -= scale
        nats[i] = math.log(total) + most - hit
