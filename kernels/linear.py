"""Matrix multiplication with the epilogue on its accumulator: linear layers and 1×1 convolutions.

out[M, N] = epilogue(x[M, K] · weight[N, K]ᵀ). A 1×1 convolution over NHWC is the same with M = N·P·Q; where it strides,
rows of the output are mapped to rows of the input. Three loaders share the epilogue: TMA descriptors with persistent
programs (sm_90 and later), several of small tiles a multiprocessor, so that one finishes its tile while another
multiplies; pointers (everywhere, and whatever TMA cannot address); and, for sums of one step, where memory is the
limit, rows that stream past the weights.
"""
# A kernel's arguments are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from unit_fast.kernels.checks import check_linear
from unit_fast.kernels.configs import (
    LINEAR,
    MatmulConfig,
    activation_constants,
    architecture,
    fitting,
    next_power_of_two,
)
from unit_fast.kernels.epilogue import load_bound, load_residual, store_block, store_tile
from unit_fast.kernels.launch import (
    capability_of,
    dot_precision,
    on_device_of,
    streaming_multiprocessors,
    tma_can_address,
    vector_multiple,
)
from unit_fast.kernels.layout import Operand, Tail, check_counts, check_kernel_operands, check_rows, per_sample


@triton.jit
def tile_of(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Row and column block of a tile number: column by column within GROUP_M row blocks, which L2 then holds."""
    row_blocks = tl.cdiv(M, BLOCK_M)
    col_blocks = tl.cdiv(N, BLOCK_N)
    group = tile // (GROUP_M * col_blocks)
    first = group * GROUP_M
    size = min(row_blocks - first, GROUP_M)
    within = tile % (GROUP_M * col_blocks)
    return first + within % size, within // size


@triton.jit
def rows_from(row_block, M, BLOCK_M: tl.constexpr):
    """The first row of a row block, 64-bit; its rows, counted from that; and which of them there are."""
    first = tl.cast(row_block, tl.int64) * BLOCK_M
    local = tl.arange(0, BLOCK_M)
    return first, local, local < M - first


@triton.jit
def _linear_pointer_kernel(
    x_ptr,  # rows of K
    weight_ptr,  # (N, K)
    out_ptr,  # (M, N)
    bias_ptr,  # (N,) or None
    residual_ptr,  # (M, N) or None
    bound_ptr,
    count_ptr,
    M,
    N,
    K,
    sample_rows,  # rows of the output a sample
    out_width,  # Q, and below: how a strided 1×1 convolution finds its input row
    in_width,
    in_rows,  # rows of the input a sample
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    BOUND: tl.constexpr,
    ACT: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_K: tl.constexpr,  # K is a multiple of BLOCK_K
    MULTIPLE_K: tl.constexpr,  # K and N are multiples of these, up to the elements of 16 bytes
    MULTIPLE_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SUBTILES: tl.constexpr,
    PREFETCH: tl.constexpr,  # whether residual and bound are asked for before the product, not after it
):
    K = K // MULTIPLE_K * MULTIPLE_K  # tells the compiler how wide it may load; Triton alone looks for 16 elements
    N = N // MULTIPLE_N * MULTIPLE_N
    row_block, col_block = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    # Rows and columns past the end read the first one: their results are never stored, and no address is out of bounds.
    first, local, row_ok = rows_from(row_block, M, BLOCK_M)
    rows = tl.where(row_ok, local, 0)
    if STRIDE_H * STRIDE_W > 1:
        rows += (first % sample_rows).to(tl.int32)
        within = rows % sample_rows
        within = (within // out_width) * STRIDE_H * in_width + (within % out_width) * STRIDE_W
        x_rows = (first // sample_rows + rows // sample_rows) * in_rows + within
    else:
        x_rows = first + rows
    cols = col_block * BLOCK_N + tl.arange(0, BLOCK_N)
    if PREFETCH:
        residual = load_residual(residual_ptr, first, local, row_ok, cols, N)
        bound = load_bound(bound_ptr, first, local, row_ok, cols, N, sample_rows, BOUND)
    safe_cols = tl.where(cols < N, cols, 0)
    ks = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + x_rows[:, None] * K
    weight_ptrs = weight_ptr + safe_cols[None, :].to(tl.int64) * K
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + ks
        if EVEN_K:
            x = tl.load(x_ptrs + k[None, :])
            weight = tl.load(weight_ptrs + k[:, None])
        else:
            ok = k < K  # masked lanes read the row's first elements, vector by vector: cp.async forms every address
            k = tl.where(ok, k // MULTIPLE_K, 0) * MULTIPLE_K + k % MULTIPLE_K
            x = tl.load(x_ptrs + k[None, :], mask=ok[None, :], other=0.0)
            weight = tl.load(weight_ptrs + k[:, None], mask=ok[:, None], other=0.0)
        acc = tl.dot(x, weight, acc, input_precision=PRECISION)
    if PREFETCH:
        store_tile(
            acc, residual, bound, first, local, row_ok, cols, N, out_ptr, bias_ptr, count_ptr, sample_rows,
            ACT, ALPHA, BETA,
        )  # fmt: skip
    else:
        store_block(
            acc, first, local, row_ok, col_block, N, out_ptr, bias_ptr, residual_ptr, bound_ptr, count_ptr, sample_rows,
            BOUND, ACT, ALPHA, BETA, BLOCK_M, BLOCK_N, SUBTILES,
        )  # fmt: skip


@triton.jit
def _linear_tma_kernel(
    x_desc,  # (M, K), blocks of (BLOCK_M, BLOCK_K)
    weight_desc,  # (N, K), blocks of (BLOCK_N, BLOCK_K)
    out_ptr,
    bias_ptr,
    residual_ptr,
    bound_ptr,
    count_ptr,
    M,
    N,
    K,
    sample_rows,
    BOUND: tl.constexpr,
    ACT: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    PRECISION: tl.constexpr,
    MULTIPLE_N: tl.constexpr,  # N is a multiple of this, up to the elements of 16 bytes
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SUBTILES: tl.constexpr,
    PROGRAMS: tl.constexpr,  # as many as run at once
):
    N = N // MULTIPLE_N * MULTIPLE_N
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    steps = tl.cdiv(K, BLOCK_K)
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True):
        row_block, col_block = tile_of(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for step in range(steps):  # blocks that reach past an edge are filled with zeros by the hardware
            x = x_desc.load([row_block * BLOCK_M, step * BLOCK_K])
            weight = weight_desc.load([col_block * BLOCK_N, step * BLOCK_K])
            acc = tl.dot(x, weight.T, acc, input_precision=PRECISION)
        first, local, row_ok = rows_from(row_block, M, BLOCK_M)
        store_block(
            acc, first, local, row_ok, col_block, N, out_ptr, bias_ptr, residual_ptr, bound_ptr, count_ptr, sample_rows,
            BOUND, ACT, ALPHA, BETA, BLOCK_M, BLOCK_N, SUBTILES,
        )  # fmt: skip


@triton.jit
def _linear_stream_kernel(
    x_ptr,  # (M, K)
    weight_ptr,  # (N, K)
    out_ptr,  # (M, N)
    bias_ptr,
    residual_ptr,
    bound_ptr,
    count_ptr,
    M,
    N,
    K,  # at most BLOCK_K
    sample_rows,
    BOUND: tl.constexpr,
    ACT: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_K: tl.constexpr,  # K is BLOCK_K
    MULTIPLE_K: tl.constexpr,  # K and N are multiples of these, up to the elements of 16 bytes
    MULTIPLE_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PROGRAMS: tl.constexpr,  # a column block
    STAGES: tl.constexpr,
):
    """Sums of one step: the weights of a column block stay where they are, and rows stream past them.

    What the next tiles need, residual and bound too, is on its way while one is finished and stored.
    """
    K = K // MULTIPLE_K * MULTIPLE_K
    N = N // MULTIPLE_N * MULTIPLE_N
    col_blocks, row_blocks = tl.cdiv(N, BLOCK_N), tl.cdiv(M, BLOCK_M)
    ks = tl.arange(0, BLOCK_K)
    cols = (tl.program_id(0) % col_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    # cp.async forms the addresses of masked lanes too: those past the end are led to the first row, column or vector.
    col_ok, k_ok = cols < N, ks < K
    if not EVEN_K:
        ks = tl.where(k_ok, ks // MULTIPLE_K, 0) * MULTIPLE_K + ks % MULTIPLE_K
    safe_cols = tl.where(col_ok, cols // MULTIPLE_N, 0) * MULTIPLE_N + cols % MULTIPLE_N
    weight_ptrs = weight_ptr + safe_cols[None, :].to(tl.int64) * K + ks[:, None]
    if EVEN_K:
        weight = tl.load(weight_ptrs)
    else:
        weight = tl.load(weight_ptrs, mask=k_ok[:, None], other=0.0)
    for row_block in tl.range(tl.program_id(0) // col_blocks, row_blocks, PROGRAMS, num_stages=STAGES):
        first, local, row_ok = rows_from(row_block, M, BLOCK_M)
        rows = tl.where(row_ok, local, 0)
        x_ptrs = x_ptr + (first + rows)[:, None] * K + ks[None, :]
        if EVEN_K:
            x = tl.load(x_ptrs)
        else:
            x = tl.load(x_ptrs, mask=k_ok[None, :], other=0.0)
        residual = load_residual(residual_ptr, first, rows, row_ok, safe_cols, N)
        bound = load_bound(bound_ptr, first, rows, row_ok, safe_cols, N, sample_rows, BOUND)
        store_tile(
            tl.dot(x, weight, input_precision=PRECISION), residual, bound, first, local, row_ok, cols, N, out_ptr,
            bias_ptr, count_ptr, sample_rows, ACT, ALPHA, BETA,
        )  # fmt: skip


class Strided(NamedTuple):
    """Where a strided 1×1 convolution finds the input row of an output row."""

    stride: tuple[int, int]
    out_width: int
    in_width: int
    in_rows: int


UNSTRIDED = Strided((1, 1), 1, 1, 1)


def matmul_constants(config: MatmulConfig, tail: Tail, n: int, x: Tensor, precision: str) -> dict[str, Any]:
    """What every matrix kernel is compiled with, whatever loads its operands."""
    act, alpha, beta = activation_constants(tail.act, tail.act_args)
    return {
        "MULTIPLE_N": vector_multiple(n, x),
        "BOUND": tail.bound.kind,
        "ACT": act,
        "ALPHA": alpha,
        "BETA": beta,
        "PRECISION": precision,
        "BLOCK_N": config.block_n,
        "SUBTILES": config.subtiles,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,  # Triton 3.10 changes the default
    }


def multiply_rows(
    x: Tensor,  # (rows, K) contiguous
    weight: Tensor,  # (N, K) contiguous
    out: Tensor,  # M·N elements, N contiguous
    m: int,
    tail: Tail,
    strided: Strided = UNSTRIDED,
    precision: str = "tf32x3",
    config: MatmulConfig | None = None,
) -> None:
    """Fill ``out`` with ``epilogue(x · weightᵀ)``, rows of x picked by ``strided``."""
    n, k = weight.shape
    capability, programs = capability_of(x), streaming_multiprocessors(x)
    tma = capability >= 90 and strided is UNSTRIDED and tma_can_address(x, weight)
    if config is None:
        table, plain = LINEAR[architecture(capability)], strided is UNSTRIDED
        config = fitting(table, m, n, k, programs, tma=tma, stream=plain, itemsize=x.element_size())[0]
    elif config.loader == "stream" and not (strided is UNSTRIDED and k <= config.k_of(x.element_size())):
        raise ValueError(
            f"unit_fast.kernels: {config} takes sums of up to {config.k_of(x.element_size())} products over rows in "
            f"order, and these are of {k}, stride {strided.stride}; take a pointer configuration"
        )
    elif config.loader == "tma" and not tma:
        raise ValueError(
            f"unit_fast.kernels: {config} cannot load x {tuple(x.shape)} and weight {tuple(weight.shape)}: TMA needs "
            "compute capability 9.0, rows that are a multiple of 16 bytes, and no stride; take a pointer configuration"
        )
    block_k = min(config.k_of(x.element_size()), max(16, next_power_of_two(k)))
    operands = (out, tail.bias, tail.residual, tail.bound.values, tail.counts, m, n, k, tail.sample_rows)
    constants = matmul_constants(config, tail, n, x, precision)
    constants |= {"BLOCK_M": config.block_m, "BLOCK_K": block_k, "GROUP_M": config.group_m}
    tiles = triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n)
    with on_device_of(x):
        if config.loader == "tma":
            # Few tiles or many, the step is the same: one compilation serves all.
            x_desc = TensorDescriptor(x, [m, k], [k, 1], [config.block_m, block_k])
            weight_desc = TensorDescriptor(weight, [n, k], [k, 1], [config.block_n, block_k])
            programs *= config.side_by_side()
            _linear_tma_kernel[(min(programs, tiles),)](x_desc, weight_desc, *operands, PROGRAMS=programs, **constants)
        elif config.loader == "stream":
            col_blocks = triton.cdiv(n, config.block_n)
            programs = max(1, programs * config.side_by_side() // col_blocks)
            del constants["GROUP_M"], constants["SUBTILES"]
            _linear_stream_kernel[(min(programs, triton.cdiv(m, config.block_m)) * col_blocks,)](
                x,
                weight,
                *operands,
                EVEN_K=k == block_k,
                MULTIPLE_K=vector_multiple(k, x),
                PROGRAMS=programs,
                STAGES=config.num_stages,
                **constants,
            )
        else:
            _linear_pointer_kernel[(tiles,)](
                x,
                weight,
                *operands,
                strided.out_width,
                strided.in_width,
                strided.in_rows,
                STRIDE_H=strided.stride[0],
                STRIDE_W=strided.stride[1],
                EVEN_K=k % block_k == 0,
                MULTIPLE_K=vector_multiple(k, x),
                PREFETCH=config.prefetch,
                **constants,
            )


def linear(
    x: Tensor,  # (B, ..., K), float16, bfloat16 or float32
    weight: Tensor,  # (N, K), x.dtype
    bias: Tensor | None = None,  # (N,)
    residual: Tensor | None = None,  # (B, ..., N), x.dtype
    bound: Tensor | None = None,  # broadcasts to (..., N)
    act: str = "identity",
    act_args: Sequence[float] = (),
    *,
    counts: Tensor | None = None,  # (B,) int32: increased by each sample's number of values above their bound
    config: MatmulConfig | None = None,
) -> Tensor:  # (B, ..., N), x.dtype, contiguous
    """``ops.linear`` by the Triton kernel; same arguments, values and errors. ``counts`` needs a bound."""
    shape = check_linear(x, weight, bias, residual, bound, act, act_args)
    check_kernel_operands("linear", x, shape[1:])
    check_rows("linear", math.prod(shape[:-1]))
    out = x.new_empty(shape)
    if counts is not None:
        check_counts(counts, x, bound)
    if out.numel() == 0:
        return out
    if x.shape[-1] == 0:
        raise ValueError(f"unit_fast.kernels: x is {tuple(x.shape)}; a product over no elements has no kernel")
    rows = x.contiguous().reshape(-1, x.shape[-1])
    operand = per_sample(bound, shape[1:], channels_last=False)
    if operand.kind == "outer_channel" and operand.values is not None:  # per token: rows of the sample, not its columns
        operand = Operand(
            "neuron", operand.values.reshape(shape[1], *(1,) * (len(shape) - 2)).expand(shape[1:]).contiguous()
        )
    residual = None if residual is None else residual.contiguous()
    tail = Tail(bias, residual, operand, counts, math.prod(shape[1:-1]), act, act_args)
    multiply_rows(
        rows,
        weight.contiguous(),
        out,
        rows.shape[0],
        tail,
        precision=dot_precision(x, convolution=False),
        config=config,
    )
    return out
