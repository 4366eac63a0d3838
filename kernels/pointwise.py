"""The epilogue as a kernel of its own: scale, bias, residual, activation and clamp in one pass over memory.

The safe partner of cuDNN and cuBLAS, and the clamp wherever nothing before it can be fused. The tensor is seen as
(rows, positions). A program takes a tile of positions, loads their scale, bias and bound once, and walks down several
rows, so that a bound per neuron is read from memory once for many samples.
"""
# A kernel's arguments are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from unit_fast.kernels.checks import check_epilogue
from unit_fast.kernels.configs import PointwiseConfig, activation_constants, pointwise_config
from unit_fast.kernels.epilogue import finish, finish_and_count
from unit_fast.kernels.launch import on_device_of
from unit_fast.kernels.layout import Operand, check_counts, check_kernel_operands, per_sample, sample_in_memory_order
from unit_fast.kernels.reference import memory_format_of


@triton.jit
def load_operand(ptr, positions, ok, INNER, OUTER, KIND: tl.constexpr):
    """A per-sample operand at ``positions``, as a row (or a scalar, or None), indexed by its KIND (``layout.Kind``)."""
    if KIND == "tensor":
        value = tl.load(ptr)
    elif KIND == "neuron":
        value = tl.load(ptr + positions, mask=ok, other=0.0)[None, :]
    elif KIND == "channel":
        value = tl.load(ptr + positions % INNER, mask=ok, other=0.0)[None, :]
    elif KIND == "outer_channel":
        value = tl.load(ptr + positions // OUTER, mask=ok, other=0.0)[None, :]
    else:
        value = None
    return value


@triton.jit
def _epilogue_kernel(
    x_ptr,  # (ROWS, POSITIONS) contiguous
    out_ptr,  # as x
    residual_ptr,  # as x, or None
    scale_ptr,
    bias_ptr,
    bound_ptr,
    count_ptr,  # (ROWS,) int32 zeros, or None
    ROWS,
    POSITIONS,
    INNER,  # channels, where the channel is the innermost axis
    OUTER,  # positions a channel, where it is the outermost
    SCALE: tl.constexpr,
    BIAS: tl.constexpr,
    BOUND: tl.constexpr,
    ACT: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    LOOPS: tl.constexpr,
):
    tiles = tl.cdiv(POSITIONS, BLOCK_S)
    positions = (tl.program_id(0) % tiles) * BLOCK_S + tl.arange(0, BLOCK_S)
    inside = positions < POSITIONS
    scale = load_operand(scale_ptr, positions, inside, INNER, OUTER, SCALE)
    bias = load_operand(bias_ptr, positions, inside, INNER, OUTER, BIAS)
    bound = load_operand(bound_ptr, positions, inside, INNER, OUTER, BOUND)
    first = (tl.program_id(0) // tiles).to(tl.int64) * (BLOCK_R * LOOPS)
    for i in range(LOOPS):
        rows = first + i * BLOCK_R + tl.arange(0, BLOCK_R)
        row_ok = rows < ROWS
        ok = row_ok[:, None] & inside[None, :]
        offsets = rows[:, None] * POSITIONS + positions[None, :]
        v = tl.load(x_ptr + offsets, mask=ok, other=0.0).to(tl.float32)
        residual = None
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + offsets, mask=ok, other=0.0)
        DTYPE: tl.constexpr = out_ptr.dtype.element_ty
        if count_ptr is not None:
            v = finish_and_count(v, scale, bias, residual, bound, count_ptr, rows, row_ok, ok, ACT, ALPHA, BETA, DTYPE)
        else:
            v = finish(v, scale, bias, residual, bound, ACT, ALPHA, BETA)
        tl.store(out_ptr + offsets, v.to(DTYPE), mask=ok)


def as_rows(operands: list[Operand], rows: int, positions: int, channels: int) -> tuple[list[Operand], int, int]:
    """The view (rows, positions) to work on: samples, or rows of channels where no operand distinguishes more.

    In a row of channels the position is the channel, so operands are read in order instead of gathered.
    """
    kinds = {operand.kind for operand in operands}
    if "channel" not in kinds or kinds & {"outer_channel", "neuron"}:
        return operands, rows, positions
    by_row = [Operand("neuron", o.values) if o.kind == "channel" else o for o in operands]
    return by_row, rows * (positions // channels), channels


def epilogue(
    x: Tensor,  # (N, *S), float16, bfloat16 or float32
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    bound: Tensor | None = None,
    act: str = "identity",
    act_args: Sequence[float] = (),
    *,
    counts: Tensor | None = None,  # (N,) int32: increased by each sample's number of values above their bound
    config: PointwiseConfig | None = None,
) -> Tensor:  # (N, *S), x.dtype
    """``ops.epilogue`` by the Triton kernel; same arguments, values and errors.

    ``counts`` needs a bound. A non-contiguous x is copied first; so is a bound of shape (C, H, W) that ``pack_bound``
    has not packed, when x is channels_last.
    """
    check_epilogue(x, scale, bias, residual, bound, act, act_args)
    check_kernel_operands("epilogue", x, x.shape[1:])
    layout = memory_format_of(x)
    x = x.contiguous(memory_format=layout)
    out = torch.empty_like(x, memory_format=layout)
    if x.numel() == 0:
        return out
    residual = None if residual is None else residual.contiguous(memory_format=layout)
    channels_last = layout is torch.channels_last
    operands = [per_sample(o, x.shape[1:], channels_last) for o in (scale, bias, bound)]
    sizes = sample_in_memory_order(x.shape[1:], channels_last) or (1,)
    rows, positions = x.shape[0], math.prod(sizes)
    inner, outer = sizes[-1], positions // sizes[0]
    if counts is None:
        operands, rows, positions = as_rows(operands, rows, positions, inner)
    else:
        check_counts(counts, x, bound)
    config = config or pointwise_config(rows, positions)
    act_name, alpha, beta = activation_constants(act, act_args)
    grid = (triton.cdiv(positions, config.block_s) * triton.cdiv(rows, config.block_r * config.loops),)
    with on_device_of(x):
        _epilogue_kernel[grid](
            x,
            out,
            residual,
            *(o.values for o in operands),
            counts,
            rows,
            positions,
            inner,
            outer,
            SCALE=operands[0].kind,
            BIAS=operands[1].kind,
            BOUND=operands[2].kind,
            ACT=act_name,
            ALPHA=alpha,
            BETA=beta,
            BLOCK_R=config.block_r,
            BLOCK_S=config.block_s,
            LOOPS=config.loops,
            num_warps=config.num_warps,
            enable_fp_fusion=True,  # Triton 3.10 changes the default
        )
    return out
