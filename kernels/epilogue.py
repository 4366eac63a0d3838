"""The one epilogue: what happens to an accumulator between the last multiply-add and the store.

Every kernel ends here. All arithmetic is float32; the result is rounded once, when it is stored. Rounding is monotone,
so clamping before it to a bound of the output's dtype gives the bits that clamping after it would.
"""
# A kernel's arguments are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(v, ACT: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr):
    """The activation ACT of v (float32). Comparisons are written so that NaN stays NaN."""
    if ACT == "relu":
        v = tl.where(v < 0, 0.0, v)
    elif ACT == "hardtanh":  # ALPHA ≤ v ≤ BETA; relu6 too
        v = tl.where(v < ALPHA, ALPHA, v)
        v = tl.where(v > BETA, BETA, v)
    elif ACT == "leaky_relu":
        v = tl.where(v > 0, v, v * ALPHA)
    elif ACT == "elu":
        v = tl.where(v > 0, v, ALPHA * (tl.exp(tl.where(v > 0, 0.0, v)) - 1.0))
    elif ACT == "gelu":
        v = 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
    elif ACT == "gelu_tanh":  # (1 + tanh u) / 2 is the logistic function of 2u
        v = v * tl.sigmoid(1.5957691216057308 * (v + 0.044715 * v * v * v))
    elif ACT == "silu":
        v = v * tl.sigmoid(v)
    elif ACT == "hardswish":
        gate = v + 3.0
        gate = tl.where(gate < 0, 0.0, gate)
        v = v * tl.where(gate > 6, 6.0, gate) * 0.16666666666666666
    else:
        tl.static_assert(ACT == "identity", "unknown activation")
    return v


@triton.jit
def clamp(v, bound):
    """v limited by bound; NaN stays NaN. tl.minimum would become min.f32, which turns NaN into the bound."""
    return tl.where(v > bound, bound, v)


@triton.jit
def finish(v, scale, bias, residual, bound, ACT: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr):
    """``min(act(v·scale + bias + residual), bound)``: v is float32, operands broadcast to it, None is left out."""
    if scale is not None:
        v = v * scale.to(tl.float32)
    if bias is not None:
        v = v + bias.to(tl.float32)
    if residual is not None:
        v = v + residual.to(tl.float32)
    v = activate(v, ACT, ALPHA, BETA)
    if bound is not None:
        v = clamp(v, bound.to(tl.float32))
    return v


@triton.jit
def finish_and_count(
    v,  # (rows, columns) float32
    scale,
    bias,
    residual,
    bound,
    count_ptr,  # int32 counts, one a sample
    samples,  # (rows,) the sample of each row
    row_ok,
    ok,
    ACT: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """``finish``, and how many values exceeded their bound added to each sample's count.

    Values are rounded to the output's DTYPE before they are compared, so the count is that of the unfused graph. The
    additions are atomic but integer, so their order does not matter.
    """
    v = finish(v, scale, bias, residual, None, ACT, ALPHA, BETA).to(DTYPE).to(tl.float32)
    bound = bound.to(tl.float32)
    above = tl.sum(((v > bound) & ok).to(tl.int32), axis=1)
    tl.atomic_add(count_ptr + samples, above, mask=row_ok, sem="relaxed")
    return clamp(v, bound)


@triton.jit
def store_tile(
    acc,  # (BLOCK_M, BLOCK_N) float32
    rows,  # (BLOCK_M,) int64, rows of the output
    cols,  # (BLOCK_N,) int32
    row_ok,
    col_ok,
    out_ptr,  # (M, N), N contiguous
    bias_ptr,  # (N,) or None
    residual_ptr,  # as out, or None
    bound_ptr,  # (), (N,) or (sample_rows, N), by BOUND; None without
    count_ptr,  # (samples,) int32, or None
    N,
    sample_rows,  # rows a sample: P·Q after a convolution, tokens after a linear
    BOUND: tl.constexpr,  # "none" | "tensor" | "channel" | "neuron"
    ACT: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
):
    """The epilogue of a matrix tile: load what it needs, finish, store."""
    ok = row_ok[:, None] & col_ok[None, :]
    offsets = rows[:, None] * N + cols[None, :]
    bias = None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + cols, mask=col_ok, other=0.0)[None, :]
    residual = None
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + offsets, mask=ok, other=0.0)
    bound = None
    if BOUND == "tensor":
        bound = tl.load(bound_ptr)
    elif BOUND == "channel":
        bound = tl.load(bound_ptr + cols, mask=col_ok, other=0.0)[None, :]
    elif BOUND == "neuron":
        within = (rows % sample_rows).to(tl.int32)  # a sample is below 2³¹ elements; the launcher checks
        bound = tl.load(bound_ptr + within[:, None] * N + cols[None, :], mask=ok, other=0.0)
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    if count_ptr is not None:
        samples = rows // sample_rows
        v = finish_and_count(acc, None, bias, residual, bound, count_ptr, samples, row_ok, ok, ACT, ALPHA, BETA, DTYPE)
    else:
        v = finish(acc, None, bias, residual, bound, ACT, ALPHA, BETA)
    tl.store(out_ptr + offsets, v.to(DTYPE), mask=ok)
