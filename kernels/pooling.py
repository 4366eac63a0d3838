"""Max pooling over NHWC, with the epilogue of what comes before it on every value that it reads.

torch's own kernel also writes the indices that a gradient needs, eight bytes an output; this one does not. A program
takes a tile of output positions × channels and keeps the largest of R·S shifted reads.
"""
# A kernel's arguments are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from unit_fast.kernels.checks import check_max_pool2d
from unit_fast.kernels.configs import TILE, activation_constants, next_power_of_two
from unit_fast.kernels.epilogue import finish
from unit_fast.kernels.launch import on_device_of, vector_multiple
from unit_fast.kernels.layout import check_kernel_operands, check_rows, per_sample
from unit_fast.kernels.window import window_of

MOST_TAPS = 25
"""Reads an output that are written out; larger windows are torch's."""


@triton.jit
def _max_pool2d_kernel(
    x_ptr,  # (B, H, W, C)
    out_ptr,  # (M, C)
    bias_ptr,  # (C,) or None
    bound_ptr,  # (), (C,) or (H, W, C), by BOUND; None without
    M,
    C,
    H,
    W,
    out_rows,  # P·Q, rows of the output a sample
    Q,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    MULTIPLE_C: tl.constexpr,  # C is a multiple of this, up to the elements of 16 bytes
    BOUND: tl.constexpr,  # "none" | "tensor" | "channel" | "neuron"
    ACT: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    C = C // MULTIPLE_C * MULTIPLE_C
    col_blocks = tl.cdiv(C, BLOCK_C)
    first = (tl.program_id(0) // col_blocks).to(tl.int64) * BLOCK_M
    cols = (tl.program_id(0) % col_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    col_ok = cols < C
    local = tl.arange(0, BLOCK_M)
    row_ok = local < M - first
    image, h_start, w_start = window_of(first, local, row_ok, out_rows, Q, H * W * C, STRIDE_H, STRIDE_W, PAD_H, PAD_W)
    bias = None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + cols, mask=col_ok, other=0.0)[None, :]
    bound = None
    if BOUND == "tensor":
        bound = tl.load(bound_ptr)
    elif BOUND == "channel":
        bound = tl.load(bound_ptr + cols, mask=col_ok, other=0.0)[None, :]
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    largest = tl.full((BLOCK_M, BLOCK_C), float("-inf"), DTYPE)
    for r in tl.static_range(R):
        for s in tl.static_range(S):
            h = h_start + r * DILATION_H
            w = w_start + s * DILATION_W
            ok = row_ok & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            mask = ok[:, None] & col_ok[None, :]
            within = (tl.where(ok, h * W + w, 0) * C)[:, None] + cols[None, :]
            x = tl.load(x_ptr + image[:, None] + within, mask=mask, other=float("-inf"))
            if BOUND == "neuron":
                bound = tl.load(bound_ptr + within, mask=mask, other=0.0)
            if (bias_ptr is not None) or (BOUND != "none") or (ACT != "identity"):
                v = finish(x.to(tl.float32), None, bias, None, bound, ACT, ALPHA, BETA).to(DTYPE)
                x = tl.where(mask, v, float("-inf"))
            largest = tl.where((x > largest) | (x != x), x, largest)  # NaN is the largest of all, as torch has it
    out = out_ptr + first * C + local[:, None] * C + cols[None, :]
    tl.store(out, largest, mask=row_ok[:, None] & col_ok[None, :])


def max_pool2d(
    x: Tensor,  # (B, C, H, W), float16, bfloat16 or float32
    bias: Tensor | None = None,  # (C,)
    bound: Tensor | None = None,  # broadcasts to (C, H, W)
    kernel_size: Sequence[int] = (1, 1),
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
    act: str = "identity",
    act_args: Sequence[float] = (),
    *,
    counts: None = None,
) -> Tensor:  # (B, C, P, Q), x.dtype, channels_last
    """``ops.max_pool2d`` by the Triton kernel; same arguments, values and errors. An x that is not NHWC is copied.

    ``counts`` must be None: a value that several windows read would be counted by each.
    """
    batch, channels, p, q = check_max_pool2d(
        x, bias, bound, kernel_size, stride, padding, dilation, ceil_mode, act, act_args
    )
    check_kernel_operands("max_pool2d", x, x.shape[1:])
    check_rows("max_pool2d", batch * p * q)
    if kernel_size[0] * kernel_size[1] > MOST_TAPS:
        raise ValueError(f"unit_fast.kernels: a window of {tuple(kernel_size)} has more than {MOST_TAPS} positions")
    if counts is not None:
        raise ValueError("unit_fast.kernels: max_pool2d counts no saturation; clamp before it, by epilogue")
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty((batch, channels, p, q), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if out.numel() == 0:
        return out
    operand = per_sample(bound, x.shape[1:], channels_last=True)
    if operand.kind == "outer_channel" and bound is not None:  # per row of the map: written out for every neuron
        operand = per_sample(bound.expand(x.shape[1:]), x.shape[1:], channels_last=True)
    act_name, alpha, beta = activation_constants(act, act_args)
    block_c = min(64, next_power_of_two(channels))
    block_m = TILE // block_c
    with on_device_of(x):
        _max_pool2d_kernel[(triton.cdiv(batch * p * q, block_m) * triton.cdiv(channels, block_c),)](
            x,
            out,
            bias,
            operand.values,
            batch * p * q,
            channels,
            x.shape[2],
            x.shape[3],
            p * q,
            q,
            STRIDE_H=stride[0],
            STRIDE_W=stride[1],
            PAD_H=padding[0],
            PAD_W=padding[1],
            DILATION_H=dilation[0],
            DILATION_W=dilation[1],
            R=kernel_size[0],
            S=kernel_size[1],
            MULTIPLE_C=vector_multiple(channels, x),
            BOUND=operand.kind,
            ACT=act_name,
            ALPHA=alpha,
            BETA=beta,
            BLOCK_M=block_m,
            BLOCK_C=block_c,
            num_warps=4,
            enable_fp_fusion=True,  # Triton 3.10 changes the default
        )
    return out
