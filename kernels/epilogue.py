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
        v = tl.maximum(v, 0.0, propagate_nan=tl.PropagateNan.ALL)
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
    if residual is not None:
        v = v + residual.to(tl.float32)
    if bias is not None:
        v = v + bias.to(tl.float32)
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
def load_residual(
    residual_ptr,  # as the output, (M, N), or None
    first,  # int64, a row of the output
    local,  # (BLOCK_M,) int32, the tile's rows, counted from first
    row_ok,
    cols,  # (columns,) int32
    N,
):
    """The residual of a matrix tile, None without. Only ``first`` is 64-bit, which the launchers check."""
    value = None
    if residual_ptr is not None:
        ok = row_ok[:, None] & (cols < N)[None, :]
        value = tl.load(residual_ptr + first * N + local[:, None] * N + cols[None, :], mask=ok, other=0.0)
    return value


@triton.jit
def load_bound(
    bound_ptr,  # (), (N,) or (sample_rows, N), by BOUND; None without
    first,
    local,
    row_ok,
    cols,
    N,
    sample_rows,  # rows a sample: P·Q after a convolution, tokens after a linear
    BOUND: tl.constexpr,  # "none" | "tensor" | "channel" | "neuron"
):
    """The bound of a matrix tile, None without."""
    value = None
    if BOUND == "tensor":
        value = tl.load(bound_ptr)
    elif BOUND == "channel":
        value = tl.load(bound_ptr + cols, mask=cols < N, other=0.0)[None, :]
    elif BOUND == "neuron":
        within = (first % sample_rows).to(tl.int32) + local  # rows since the sample of first began
        neurons = (within % sample_rows)[:, None] * N + cols[None, :]
        value = tl.load(bound_ptr + neurons, mask=row_ok[:, None] & (cols < N)[None, :], other=0.0)
    else:
        tl.static_assert(BOUND == "none", "a bound that matrix kernels cannot read")
    return value


@triton.jit
def store_tile(
    acc,  # (BLOCK_M, columns) float32
    residual,  # of ``load_residual``
    bound,  # of ``load_bound``
    first,
    local,
    row_ok,
    cols,
    N,
    out_ptr,  # (M, N), N contiguous
    bias_ptr,  # (N,) or None
    count_ptr,  # (samples,) int32, or None
    sample_rows,
    ACT: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
):
    """The epilogue of a matrix tile: finish and store."""
    bias = None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + cols, mask=cols < N, other=0.0)[None, :]
    ok = row_ok[:, None] & (cols < N)[None, :]
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    if count_ptr is not None:
        within = (first % sample_rows).to(tl.int32) + local
        samples = first // sample_rows + within // sample_rows
        v = finish_and_count(
            acc, None, bias, residual, bound, count_ptr, samples, row_ok, ok, ACT, ALPHA, BETA, DTYPE
        )  # fmt: skip
    else:
        v = finish(acc, None, bias, residual, bound, ACT, ALPHA, BETA)
    tl.store(out_ptr + first * N + local[:, None] * N + cols[None, :], v.to(DTYPE), mask=ok)


@triton.jit
def split_columns(acc, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The left and right half of a tile."""
    return tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))


@triton.jit
def store_block(
    acc,  # (BLOCK_M, BLOCK_N) float32
    first,
    local,
    row_ok,
    col_block,
    N,
    out_ptr,
    bias_ptr,
    residual_ptr,
    bound_ptr,
    count_ptr,
    sample_rows,
    BOUND: tl.constexpr,
    ACT: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SUBTILES: tl.constexpr,  # 1, 2 or 4 parts of its columns, to hold fewer operands in registers at once
):
    """Load the operands of the columns of block col_block, finish and store them."""
    if SUBTILES == 1:
        parts = (acc,)
    elif SUBTILES == 2:
        parts = split_columns(acc, BLOCK_M, BLOCK_N)
    else:
        left, right = split_columns(acc, BLOCK_M, BLOCK_N)
        parts = split_columns(left, BLOCK_M, BLOCK_N // 2) + split_columns(right, BLOCK_M, BLOCK_N // 2)
    WIDTH: tl.constexpr = BLOCK_N // SUBTILES
    for part in tl.static_range(SUBTILES):
        cols = col_block * BLOCK_N + part * WIDTH + tl.arange(0, WIDTH)
        residual = load_residual(residual_ptr, first, local, row_ok, cols, N)
        bound = load_bound(bound_ptr, first, local, row_ok, cols, N, sample_rows, BOUND)
        store_tile(
            parts[part], residual, bound, first, local, row_ok, cols, N, out_ptr, bias_ptr, count_ptr, sample_rows,
            ACT, ALPHA, BETA,
        )  # fmt: skip
