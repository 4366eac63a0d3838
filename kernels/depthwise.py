"""Depthwise convolution over NHWC, with the epilogue on its accumulator.

Each channel has one filter, so there is no matrix product: a program takes a tile of output positions × channels and
adds up R·S shifted reads, fully unrolled. What neighbouring positions share comes out of L1; memory bandwidth is the
limit.
"""
# A kernel's arguments are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from unit_fast.kernels.configs import DepthwiseConfig, activation_constants, depthwise_config
from unit_fast.kernels.epilogue import store_tile
from unit_fast.kernels.launch import on_device_of, vector_multiple
from unit_fast.kernels.layout import ConvGeometry, Tail
from unit_fast.kernels.window import window_of


@triton.jit
def _depthwise_kernel(
    x_ptr,  # (B, H, W, C)
    weight_ptr,  # (R, S, C)
    out_ptr,  # (M, C)
    bias_ptr,
    residual_ptr,
    bound_ptr,
    count_ptr,
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
    BOUND: tl.constexpr,
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
    local = tl.arange(0, BLOCK_M)
    row_ok = local < M - first
    image, h_start, w_start = window_of(first, local, row_ok, out_rows, Q, H * W * C, STRIDE_H, STRIDE_W, PAD_H, PAD_W)
    acc = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    for r in tl.static_range(R):
        for s in tl.static_range(S):
            h = h_start + r * DILATION_H
            w = w_start + s * DILATION_W
            ok = row_ok & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            pixel = image + tl.where(ok, h * W + w, 0) * C
            mask = ok[:, None] & (cols < C)[None, :]
            x = tl.load(x_ptr + pixel[:, None] + cols[None, :], mask=mask, other=0.0)
            weight = tl.load(weight_ptr + (r * S + s) * C + cols, mask=cols < C, other=0.0)
            acc += x.to(tl.float32) * weight.to(tl.float32)[None, :]
    store_tile(
        acc, first, local, row_ok, cols, C, out_ptr, bias_ptr, residual_ptr, bound_ptr, count_ptr, out_rows,
        BOUND, ACT, ALPHA, BETA,
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
    m = batch * geometry.out_height * geometry.out_width
    config = config or depthwise_config(channels)
    act, alpha, beta = activation_constants(tail.act, tail.act_args)
    grid = (triton.cdiv(m, config.block_m) * triton.cdiv(channels, config.block_c),)
    with on_device_of(x):
        _depthwise_kernel[grid](
            x,
            weight.permute(2, 3, 1, 0).contiguous(),
            out,
            tail.bias,
            tail.residual,
            tail.bound.values,
            tail.counts,
            m,
            channels,
            height,
            width,
            tail.sample_rows,
            geometry.out_width,
            **geometry.constants(),
            MULTIPLE_C=vector_multiple(channels, x),
            BOUND=tail.bound.kind,
            ACT=act,
            ALPHA=alpha,
            BETA=beta,
            BLOCK_M=config.block_m,
            BLOCK_C=config.block_c,
            num_warps=config.num_warps,
            enable_fp_fusion=True,  # Triton 3.10 changes the default
        )
