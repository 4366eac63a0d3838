"""Convolution as an implicit matrix product over NHWC, with the epilogue on its accumulator.

M = N·P·Q output positions, N = output channels, K = R·S·C. One flat loop runs over K (a loop unrolled by taps loses its
pipelining: no cp.async is left), taps innermost, so that neighbouring steps read overlapping parts of the image from
cache. Two loaders: pointers, and, for stride 1 on sm_90 and later, a TMA descriptor of the image, whose blocks are
patches of the map at signed coordinates, so that padding costs nothing. Images of few channels walk K without regard to
taps; of fewer still, ``stem`` takes them.
"""
# A kernel's arguments are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from unit_fast.kernels.configs import CONV2D, MatmulConfig, architecture, fitting, next_power_of_two
from unit_fast.kernels.epilogue import store_block
from unit_fast.kernels.launch import (
    capability_of,
    dot_precision,
    on_device_of,
    streaming_multiprocessors,
    vector_multiple,
)
from unit_fast.kernels.layout import ConvGeometry, Tail
from unit_fast.kernels.linear import matmul_constants, rows_from, tile_of
from unit_fast.kernels.window import window_of


@triton.jit
def _conv2d_kernel(
    x_ptr,  # (B, H, W, C)
    weight_ptr,  # (N, R, S, C)
    out_ptr,  # (M, N)
    bias_ptr,
    residual_ptr,
    bound_ptr,
    count_ptr,
    M,
    N,
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
    FLAT_C: tl.constexpr,  # 0: a step is one tap; else C, a small power of two: a step is BLOCK_K of taps × channels
    EVEN_C: tl.constexpr,  # C is a multiple of BLOCK_K
    MULTIPLE_C: tl.constexpr,  # C and N are multiples of these, up to the elements of 16 bytes
    MULTIPLE_N: tl.constexpr,
    BOUND: tl.constexpr,
    ACT: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SUBTILES: tl.constexpr,
):
    # A masked lane's address must be valid too: cp.async forms it all the same (pytorch#186440). Selecting a pixel or a
    # vector and multiplying afterwards keeps the divisibility that 16-byte cp.async needs; a select of the product
    # loses it, and with it the pipeline of x (155 registers and 12 cp.async instead of 124 and 24 at 128x128x64).
    C = C // MULTIPLE_C * MULTIPLE_C
    N = N // MULTIPLE_N * MULTIPLE_N
    row_block, col_block = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    # Rows and columns past the end read the first one: their results are never stored, and no address is out of bounds.
    first, local, row_ok = rows_from(row_block, M, BLOCK_M)
    image, h_start, w_start = window_of(first, local, row_ok, out_rows, Q, H * W * C, STRIDE_H, STRIDE_W, PAD_H, PAD_W)
    cols = col_block * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.where(cols < N, cols, 0)
    ks = tl.arange(0, BLOCK_K)
    TAPS: tl.constexpr = R * S
    weight_ptrs = weight_ptr + cols[None, :].to(tl.int64) * (TAPS * C)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if FLAT_C > 0:
        x_ptrs = x_ptr + image[:, None]
        for start in range(0, TAPS * FLAT_C, BLOCK_K):
            k = start + ks
            tap = k // FLAT_C
            h = h_start[:, None] + ((tap // S) * DILATION_H)[None, :]
            w = w_start[:, None] + ((tap % S) * DILATION_W)[None, :]
            tap_ok = tap < TAPS
            ok = (h >= 0) & (h < H) & (w >= 0) & (w < W) & tap_ok[None, :]
            offsets = tl.where(ok, h * W + w, 0) * FLAT_C + (k % FLAT_C)[None, :]
            weights = tl.where(tap_ok, tap, 0) * FLAT_C + k % FLAT_C
            x = tl.load(x_ptrs + offsets, mask=ok, other=0.0)
            weight = tl.load(weight_ptrs + weights[:, None], mask=tap_ok[:, None], other=0.0)
            acc = tl.dot(x, weight, acc, input_precision=PRECISION)
    else:
        for step in range(0, TAPS * tl.cdiv(C, BLOCK_K)):
            tap = step % TAPS
            c = (step // TAPS) * BLOCK_K + ks
            h = h_start + (tap // S) * DILATION_H
            w = w_start + (tap % S) * DILATION_W
            ok = (h >= 0) & (h < H) & (w >= 0) & (w < W)
            pixel = tl.where(ok, h * W + w, 0) * C
            if EVEN_C:
                x = tl.load(x_ptr + (image + pixel)[:, None] + c[None, :], mask=ok[:, None], other=0.0)
                weight = tl.load(weight_ptrs + (tap * C + c)[:, None])
            else:
                c_ok = c < C
                c = tl.where(c_ok, c // MULTIPLE_C, 0) * MULTIPLE_C + c % MULTIPLE_C
                x_ok = ok[:, None] & c_ok[None, :]
                x = tl.load(x_ptr + (image + pixel)[:, None] + c[None, :], mask=x_ok, other=0.0)
                weight = tl.load(weight_ptrs + (tap * C + c)[:, None], mask=c_ok[:, None], other=0.0)
            acc = tl.dot(x, weight, acc, input_precision=PRECISION)
    store_block(
        acc, first, local, row_ok, col_block, N, out_ptr, bias_ptr, residual_ptr, bound_ptr, count_ptr, out_rows,
        BOUND, ACT, ALPHA, BETA, BLOCK_M, BLOCK_N, SUBTILES,
    )  # fmt: skip


@triton.jit
def _conv2d_tma_kernel(
    x_desc,  # (B, H, W, C), blocks of (1, TILE_H, TILE_W, BLOCK_K)
    weight_desc,  # (N, R·S·C), blocks of (BLOCK_N, BLOCK_K)
    out_ptr,  # (B·P·Q, N)
    bias_ptr,
    residual_ptr,
    bound_ptr,
    count_ptr,
    N,
    C,  # a multiple of BLOCK_K
    P,
    Q,
    out_rows,  # P·Q
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    MULTIPLE_N: tl.constexpr,  # N is a multiple of this, up to the elements of 16 bytes
    BOUND: tl.constexpr,
    ACT: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SUBTILES: tl.constexpr,
):
    """Stride 1: a tile is a patch of the map, and what of it lies outside the image the hardware reads as zeros."""
    N = N // MULTIPLE_N * MULTIPLE_N
    BLOCK_M: tl.constexpr = TILE_H * TILE_W
    TAPS: tl.constexpr = R * S
    col_blocks = tl.cdiv(N, BLOCK_N)
    col_block = tl.program_id(0) % col_blocks
    patch = tl.program_id(0) // col_blocks
    across = tl.cdiv(Q, TILE_W)
    patches = tl.cdiv(P, TILE_H) * across
    image = patch // patches
    p_start = (patch % patches) // across * TILE_H
    q_start = (patch % patches) % across * TILE_W
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(0, TAPS * (C // BLOCK_K)):
        tap = step % TAPS
        c = step // TAPS * BLOCK_K
        h = p_start - PAD_H + tap // S * DILATION_H
        w = q_start - PAD_W + tap % S * DILATION_W
        x = tl.reshape(x_desc.load([image, h, w, c]), (BLOCK_M, BLOCK_K))
        weight = weight_desc.load([col_block * BLOCK_N, tap * C + c])
        acc = tl.dot(x, weight.T, acc, input_precision=PRECISION)
    row = tl.arange(0, BLOCK_M)
    p = p_start + row // TILE_W
    q = q_start + row % TILE_W
    store_block(
        acc, image.to(tl.int64) * out_rows, p * Q + q, (p < P) & (q < Q), col_block, N, out_ptr, bias_ptr, residual_ptr,
        bound_ptr, count_ptr, out_rows, BOUND, ACT, ALPHA, BETA, BLOCK_M, BLOCK_N, SUBTILES,
    )  # fmt: skip


def implicit_product(
    x: Tensor,  # (B, C, H, W) channels_last
    weight: Tensor,  # (N, C, R, S) channels_last
    out: Tensor,  # (B, N, P, Q) channels_last, to be filled
    geometry: ConvGeometry,
    tail: Tail,
    config: MatmulConfig | None = None,
) -> None:
    """Fill ``out`` with the epilogue of a convolution without groups."""
    vector = 16 // x.element_size()
    flat = x.shape[1] <= 2 * vector
    missing = next_power_of_two(x.shape[1]) - x.shape[1]
    if flat and missing:  # a power of two, so that taps and channels are shifts and masks of k
        x = F.pad(x, (0, 0, 0, 0, 0, missing)).contiguous(memory_format=torch.channels_last)
        weight = F.pad(weight, (0, 0, 0, 0, 0, missing)).contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    m, n = batch * geometry.out_height * geometry.out_width, weight.shape[0]
    itemsize, capability = x.element_size(), capability_of(x)
    table = CONV2D[architecture(capability)]
    tma = capability >= 90 and geometry.stride == (1, 1) and x.data_ptr() % 16 == 0 and weight.data_ptr() % 16 == 0
    by_tma = [c for c in (table if config is None else [config]) if c.loader == "tma"]
    tma = tma and all(channels % c.k_of(itemsize) == 0 for c in by_tma)
    if config is None:
        worth = tma and min(geometry.out_height, geometry.out_width) >= 7  # a smaller map fills little of a patch
        k = channels * weight.shape[2] * weight.shape[3]
        config = fitting(table, m, n, k, streaming_multiprocessors(x), tma=worth, itemsize=itemsize)[0]
    elif config.loader == "tma" and not tma:
        raise ValueError(
            f"unit_fast.kernels: {config} cannot load x {tuple(x.shape)} for a stride of {geometry.stride}: TMA needs "
            "compute capability 9.0, stride 1 and channels that are a multiple of BLOCK_K; take a pointer configuration"
        )
    shared = matmul_constants(config, tail, n, x, dot_precision(x, convolution=True))
    operands = (out, tail.bias, tail.residual, tail.bound.values, tail.counts)
    with on_device_of(x):
        if config.loader == "tma":
            _launch_tma(x, weight, operands, geometry, config, shared)
            return
        block_k = config.k_of(itemsize)
        if not flat:
            block_k = min(block_k, max(16, next_power_of_two(channels)))
        _conv2d_kernel[(triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n),)](
            x,
            weight,
            *operands,
            m,
            n,
            channels,
            height,
            width,
            tail.sample_rows,
            geometry.out_width,
            **geometry.constants(),
            FLAT_C=channels if flat else 0,
            EVEN_C=channels % block_k == 0,
            MULTIPLE_C=vector_multiple(channels, x),
            BLOCK_M=config.block_m,
            BLOCK_K=block_k,
            GROUP_M=config.group_m,
            **shared,
        )


def _launch_tma(
    x: Tensor,
    weight: Tensor,
    operands: tuple[Tensor | None, ...],
    geometry: ConvGeometry,
    config: MatmulConfig,
    shared: dict[str, Any],
) -> None:
    batch, channels, height, width = x.shape
    n, (p, q) = weight.shape[0], (geometry.out_height, geometry.out_width)
    (tile_h, tile_w), block_k = config.patch(), config.k_of(x.element_size())
    strides = [height * width * channels, width * channels, channels, 1]
    x_desc = TensorDescriptor(x, [batch, height, width, channels], strides, [1, tile_h, tile_w, block_k])
    k = weight.shape[2] * weight.shape[3] * channels
    weight_desc = TensorDescriptor(weight, [n, k], [k, 1], [config.block_n, block_k])
    constants = {name: value for name, value in geometry.constants().items() if not name.startswith("STRIDE")}
    patches = batch * triton.cdiv(p, tile_h) * triton.cdiv(q, tile_w)
    _conv2d_tma_kernel[(patches * triton.cdiv(n, config.block_n),)](
        x_desc,
        weight_desc,
        *operands,
        n,
        channels,
        p,
        q,
        p * q,
        **constants,
        TILE_H=tile_h,
        TILE_W=tile_w,
        BLOCK_K=block_k,
        **shared,
    )
