"""Depthwise convolution over NHWC, with the epilogue on its accumulator.

Each channel has one filter, so there is no matrix product. A program takes strips of up to four neighbouring outputs of
a row × channels: what it reads and converts of the input serves every output of the strip that it reaches, and a weight
all of them, since instructions, not memory, are the limit otherwise. What strips share comes out of L1.
"""
# A kernel's arguments are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from unit_fast.kernels.configs import DepthwiseConfig, activation_constants, depthwise_configs
from unit_fast.kernels.epilogue import load_bound, load_residual, store_tile
from unit_fast.kernels.launch import on_device_of, vector_multiple
from unit_fast.kernels.layout import ConvGeometry, Tail


@triton.jit
def add_tap(
    acc,  # (BLOCK_M, BLOCK_C) float32
    x,  # likewise
    taps,  # pointers to a row of the filter
    col_ok,
    C,
    offset: tl.constexpr,  # of the column x was read from, in the window of this output
    DILATION: tl.constexpr,
    S: tl.constexpr,
):
    """What x adds to an output; nothing where its window does not have that column."""
    if offset >= 0 and offset % DILATION == 0 and offset // DILATION < S:
        weight = tl.load(taps + offset // DILATION * C, mask=col_ok, other=0.0)
        acc += x * weight.to(tl.float32)[None, :]
    return acc


@triton.jit
def _depthwise_kernel(
    x_ptr,  # (B, H, W, C)
    weight_ptr,  # (R, S, C)
    out_ptr,  # (B·P·Q, C)
    bias_ptr,
    residual_ptr,
    bound_ptr,
    count_ptr,
    strips,  # B · P · strips a row
    C,
    H,
    W,
    P,
    Q,
    out_rows,  # P·Q, rows of the output a sample
    R,  # not known to the compiler, which would begin with the reads of all rows: 237 registers and not 106
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    S: tl.constexpr,
    MULTIPLE_C: tl.constexpr,  # C is a multiple of this, up to the elements of 16 bytes
    BOUND: tl.constexpr,
    ACT: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STRIP: tl.constexpr,  # 1, 2 or 4
):
    C = C // MULTIPLE_C * MULTIPLE_C
    col_blocks = tl.cdiv(C, BLOCK_C)
    cols = (tl.program_id(0) % col_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    col_ok = cols < C
    start = (tl.program_id(0) // col_blocks).to(tl.int64) * BLOCK_M
    across = tl.cdiv(Q, STRIP)
    local = tl.arange(0, BLOCK_M)
    strip_ok = local < strips - start
    begin = (start % (P * across)).to(tl.int32)
    strip = tl.where(strip_ok, local, 0) + begin  # since the first image of the tile
    image = strip // (P * across)
    p = strip % (P * across) // across
    q = strip % across * STRIP
    before = begin // across * Q + begin % across * STRIP  # rows of that image before the tile
    first = start // (P * across) * out_rows + before
    row = image * out_rows + p * Q + q - before
    x_image = x_ptr + (start // (P * across) + image) * (H * W * C)
    h_start = p * STRIDE_H - PAD_H
    w_start = q * STRIDE_W - PAD_W
    sums = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    first_sum, second, third, fourth = sums, sums, sums, sums
    for r in range(R):
        h = h_start + r * DILATION_H
        h_ok = strip_ok & (h >= 0) & (h < H)
        for column in tl.static_range((STRIP - 1) * STRIDE_W + (S - 1) * DILATION_W + 1):
            w = w_start + column
            ok = h_ok & (w >= 0) & (w < W)
            pixel = x_image + tl.where(ok, h * W + w, 0) * C
            x = tl.load(pixel[:, None] + cols[None, :], mask=ok[:, None] & col_ok[None, :], other=0.0).to(tl.float32)
            taps = weight_ptr + r * S * C + cols
            first_sum = add_tap(first_sum, x, taps, col_ok, C, column, DILATION_W, S)
            if STRIP > 1:
                second = add_tap(second, x, taps, col_ok, C, column - STRIDE_W, DILATION_W, S)
            if STRIP > 2:
                third = add_tap(third, x, taps, col_ok, C, column - 2 * STRIDE_W, DILATION_W, S)
                fourth = add_tap(fourth, x, taps, col_ok, C, column - 3 * STRIDE_W, DILATION_W, S)
    results = (first_sum, second, third, fourth)
    for i in tl.static_range(STRIP):
        row_ok = strip_ok & (q + i < Q)
        residual = load_residual(residual_ptr, first, row + i, row_ok, cols, C)
        bound = load_bound(bound_ptr, first, row + i, row_ok, cols, C, out_rows, BOUND)
        store_tile(
            results[i], residual, bound, first, row + i, row_ok, cols, C, out_ptr, bias_ptr, count_ptr, out_rows,
            ACT, ALPHA, BETA,
        )  # fmt: skip


def depthwise(
    x: Tensor,  # (B, C, H, W) channels_last
    weight: Tensor,  # (C, 1, R, S)
    out: Tensor,  # (B, C, P, Q) channels_last, to be filled
    geometry: ConvGeometry,
    tail: Tail,
    config: DepthwiseConfig | None = None,
) -> None:
    """Fill ``out`` with the epilogue of the depthwise convolution. A weight from ``pack_weight`` is not copied."""
    batch, channels, height, width = x.shape
    config = config or depthwise_configs(channels, geometry.out_width)[0]
    strips = batch * geometry.out_height * triton.cdiv(geometry.out_width, config.strip)
    act, alpha, beta = activation_constants(tail.act, tail.act_args)
    grid = (triton.cdiv(strips, config.block_m) * triton.cdiv(channels, config.block_c),)
    with on_device_of(x):
        _depthwise_kernel[grid](
            x,
            weight.permute(2, 3, 1, 0).contiguous(),
            out,
            tail.bias,
            tail.residual,
            tail.bound.values,
            tail.counts,
            strips,
            channels,
            height,
            width,
            geometry.out_height,
            geometry.out_width,
            tail.sample_rows,
            **geometry.constants(),
            MULTIPLE_C=vector_multiple(channels, x),
            BOUND=tail.bound.kind,
            ACT=act,
            ALPHA=alpha,
            BETA=beta,
            BLOCK_M=config.block_m,
            BLOCK_C=config.block_c,
            STRIP=config.strip,
            num_warps=config.num_warps,
            enable_fp_fusion=True,  # Triton 3.10 changes the default
        )
