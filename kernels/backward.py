"""The gradient of the clamp, in two deterministic stages.

dX = g where not x > bound. dBound = Σ over the batch of g where x > bound. The first stage writes dX and, in the same
pass, adds up dBound over a chunk of rows in float32; the second adds the chunks up in their order. There are no
atomics, and how rows are chunked depends on the shape alone, so the same inputs give the same bits in every run.
"""
# A kernel's arguments are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unit_fast.kernels.checks import check_per_sample
from unit_fast.kernels.configs import TILE, next_power_of_two
from unit_fast.kernels.launch import on_device_of
from unit_fast.kernels.layout import Operand, check_kernel_operands, per_sample, sample_in_memory_order
from unit_fast.kernels.pointwise import as_rows, epilogue, load_operand
from unit_fast.kernels.reference import memory_format_of

CHUNKS = 64
"""The most partial sums a position; with 1,024 positions a program, 64 chunks of a small map still fill a GPU."""


@triton.jit
def _chunk_kernel(
    grad_ptr,  # (ROWS, POSITIONS) contiguous
    x_ptr,  # as grad
    bound_ptr,
    dx_ptr,  # as grad
    partial_ptr,  # (chunks, POSITIONS) float32
    ROWS,
    POSITIONS,
    INNER,
    OUTER,
    chunk_rows,
    BOUND: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    tiles = tl.cdiv(POSITIONS, BLOCK_S)
    positions = (tl.program_id(0) % tiles) * BLOCK_S + tl.arange(0, BLOCK_S)
    chunk = tl.program_id(0) // tiles
    inside = positions < POSITIONS
    bound = load_operand(bound_ptr, positions, inside, INNER, OUTER, BOUND).to(x_ptr.dtype.element_ty)
    first = chunk.to(tl.int64) * chunk_rows
    sums = tl.zeros((BLOCK_R, BLOCK_S), dtype=tl.float32)
    for start in range(0, chunk_rows, BLOCK_R):
        local = start + tl.arange(0, BLOCK_R)
        rows = first + local
        ok = ((local < chunk_rows) & (rows < ROWS))[:, None] & inside[None, :]
        offsets = rows[:, None] * POSITIONS + positions[None, :]
        x = tl.load(x_ptr + offsets, mask=ok, other=0.0)
        grad = tl.load(grad_ptr + offsets, mask=ok, other=0.0)
        above = x > bound
        tl.store(dx_ptr + offsets, tl.where(above, 0.0, grad), mask=ok)
        sums += tl.where(above, grad.to(tl.float32), 0.0)
    out = partial_ptr + chunk.to(tl.int64) * POSITIONS + positions
    tl.store(out, tl.sum(sums, axis=0), mask=inside)


@triton.jit
def _sum_chunks_kernel(partial_ptr, out_ptr, POSITIONS, chunks, BLOCK: tl.constexpr):
    positions = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = positions < POSITIONS
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for chunk in range(chunks):
        total += tl.load(partial_ptr + tl.cast(chunk, tl.int64) * POSITIONS + positions, mask=inside, other=0.0)
    tl.store(out_ptr + positions, total, mask=inside)


def clamp_bound_backward(
    grad: Tensor,  # (N, *S)
    x: Tensor,  # (N, *S), float16, bfloat16 or float32
    bound: Tensor,  # broadcasts to (*S)
) -> tuple[Tensor, Tensor]:  # (N, *S) x.dtype, as bound
    """The gradients of ``clamp_bound(x, bound)`` for ``x`` and ``bound``; sums are float32, whatever the dtypes.

    Raises:
        TypeError: ``x`` is not of a dtype the kernels take.
        ValueError: ``bound`` or ``grad`` does not fit ``x``.
    """
    check_per_sample("clamp_bound", "bound", bound, x, x.shape)
    check_kernel_operands("clamp_bound", x, x.shape[1:])
    if grad.shape != x.shape or grad.dtype != x.dtype or grad.device != x.device:
        raise ValueError(
            f"unit_fast.kernels: the gradient is {grad.dtype} {tuple(grad.shape)} on {grad.device}; expected "
            f"that of x: {x.dtype} {tuple(x.shape)} on {x.device}"
        )
    layout = memory_format_of(x)
    x, grad = x.contiguous(memory_format=layout), grad.contiguous(memory_format=layout)
    dx = torch.empty_like(x, memory_format=layout)
    if x.numel() == 0:
        return dx, torch.zeros_like(bound)
    channels_last = layout is torch.channels_last
    sizes = sample_in_memory_order(x.shape[1:], channels_last) or (1,)
    whole = math.prod(sizes)
    operands = [per_sample(bound, x.shape[1:], channels_last)]
    (operand,), rows, positions = as_rows(operands, x.shape[0], whole, sizes[-1])
    total = _reduce(grad, x, operand, dx, rows, positions, sizes[-1], whole // sizes[0])
    if positions < whole:  # rows of channels
        return dx, total.reshape(bound.shape).to(bound.dtype)
    sample = total.reshape(sizes if x.dim() > 1 else ())
    if channels_last:
        sample = sample.permute(2, 0, 1)
    return dx, sample.sum_to_size(bound.shape).to(bound.dtype)


def _reduce(
    grad: Tensor, x: Tensor, bound: Operand, dx: Tensor, rows: int, positions: int, inner: int, outer: int
) -> Tensor:  # (positions,) float32
    block_s = min(TILE, next_power_of_two(positions))
    block_r = max(1, TILE // block_s)
    chunk_rows = triton.cdiv(triton.cdiv(rows, block_r), CHUNKS) * block_r
    chunks = triton.cdiv(rows, chunk_rows)
    partial = torch.empty((chunks, positions), dtype=torch.float32, device=x.device)
    total = torch.empty(positions, dtype=torch.float32, device=x.device)
    with on_device_of(x):
        _chunk_kernel[(triton.cdiv(positions, block_s) * chunks,)](
            grad,
            x,
            bound.values,
            dx,
            partial,
            rows,
            positions,
            inner,
            outer,
            chunk_rows,
            BOUND=bound.kind,
            BLOCK_R=block_r,
            BLOCK_S=block_s,
            num_warps=4,
            enable_fp_fusion=True,  # Triton 3.10 changes the default
        )
        _sum_chunks_kernel[(triton.cdiv(positions, TILE),)](
            partial, total, positions, chunks, BLOCK=TILE, num_warps=4, enable_fp_fusion=True
        )
    return total


class _ClampBound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: Tensor) -> Tensor:
        ctx.save_for_backward(x, bound)
        return epilogue(x, bound=bound)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return clamp_bound_backward(grad, *ctx.saved_tensors)


def clamp_bound(
    x: Tensor,  # (N, *S), float16, bfloat16 or float32
    bound: Tensor,  # broadcasts to (*S)
) -> Tensor:  # (N, *S), x.dtype
    """``ops.clamp_bound`` by the Triton kernels, once differentiable in both arguments; same values and errors."""
    result: Tensor = _ClampBound.apply(x, bound)
    return result
