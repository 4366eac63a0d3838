"""Convolution of an image of few channels, a network's first layer: the image is packed, then it is a plain product.

A pixel of three channels is six bytes in half precision, which no wide load can begin at, and zeros around the image
want a mask an element. So one pass copies what the windows read, border and all, with 4 or 8 channels a pixel, and the
weight in the same order. A row of a window is then one run of S pixels in memory, rounded up to a power of two, and K
goes over R such runs: nothing is masked but the ends of the runs. Loads are as wide as a pixel, for three channels in
half precision 8 bytes, which go through the first cache, where the windows of neighbouring outputs overlap. Patches
that lie in memory as runs of whole 8 bytes already (a vision transformer's) are multiplied where they lie.
"""
# A kernel's arguments are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from unit_fast.kernels.configs import STEM, TILE, MatmulConfig, architecture, fitting, next_power_of_two
from unit_fast.kernels.epilogue import store_block
from unit_fast.kernels.launch import (
    capability_of,
    dot_precision,
    on_device_of,
    streaming_multiprocessors,
    vector_multiple,
)
from unit_fast.kernels.layout import LARGEST_SAMPLE, ConvGeometry, Tail, check_kernel_operands
from unit_fast.kernels.linear import matmul_constants, rows_from, tile_of
from unit_fast.kernels.window import window_of


@triton.jit
def _pack_kernel(
    x_ptr,  # (B, C, H, W) in any layout
    packed_ptr,  # (B, PACKED_H, PACKED_W, PIXEL)
    weight_ptr,  # (N, C, R, S) in any layout
    packed_weight_ptr,  # (N, K)
    x_programs,  # of x; those after them do the weight
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    weight_stride_n,
    weight_stride_c,
    weight_stride_r,
    weight_stride_s,
    C,
    H,
    W,
    packed_h,
    packed_w,
    WEIGHTS,  # N·K
    K,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    PIXEL: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,  # pixels a program
):
    program = tl.program_id(0)
    if program < x_programs:
        blocks = tl.cdiv(packed_h * packed_w, BLOCK)
        image = (program // blocks).to(tl.int64)
        pixel = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
        c = tl.arange(0, PIXEL)
        h, w = pixel // packed_w - PAD_H, pixel % packed_w - PAD_W
        inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
        ok = inside[:, None] & (c < C)[None, :]
        place = tl.where(inside, h * stride_h + w * stride_w, 0)[:, None] + tl.where(c < C, c * stride_c, 0)[None, :]
        x = tl.load(x_ptr + image * stride_b + place, mask=ok, other=0.0)
        target = packed_ptr + image * (packed_h * packed_w * PIXEL)
        tl.store(target + pixel[:, None] * PIXEL + c[None, :], x, mask=(pixel < packed_h * packed_w)[:, None])
    else:
        element = (program - x_programs) * (BLOCK * PIXEL) + tl.arange(0, BLOCK * PIXEL)
        n, k = element // K, element % K
        r, s, channel = k // SPAN, k % SPAN // PIXEL, k % PIXEL  # no name of the other branch: their types differ
        held = (element < WEIGHTS) & (r < R) & (s < S) & (channel < C)
        source = n * weight_stride_n + channel * weight_stride_c + r * weight_stride_r + s * weight_stride_s
        weight = tl.load(weight_ptr + tl.where(held, source, 0), mask=held, other=0.0)
        tl.store(packed_weight_ptr + element, weight, mask=element < WEIGHTS)


@triton.jit
def _stem_kernel(
    x_ptr,  # (B, H, W, PIXEL), the border in it
    weight_ptr,  # (N, K), K a multiple of BLOCK_K: R runs of SPAN, then zeros
    out_ptr,  # (M, N)
    bias_ptr,
    residual_ptr,
    bound_ptr,
    count_ptr,
    M,
    N,
    H,
    W,
    out_rows,  # P·Q, rows of the output a sample
    Q,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    K: tl.constexpr,
    PIXEL: tl.constexpr,  # channels a pixel
    SPAN: tl.constexpr,  # elements a run: S pixels, and up to a power of two
    MULTIPLE_W: tl.constexpr,  # W and N are multiples of these, up to the elements of 16 bytes
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
    W = W // MULTIPLE_W * MULTIPLE_W
    N = N // MULTIPLE_N * MULTIPLE_N
    row_block, col_block = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    # Rows and columns past the end read the first one: their results are never stored, and no address is out of bounds.
    first, local, row_ok = rows_from(row_block, M, BLOCK_M)
    image, h, w = window_of(first, local, row_ok, out_rows, Q, H * W, STRIDE_H, STRIDE_W, 0, 0)
    cols = col_block * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.where(cols < N, cols, 0)
    ks = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + ((image + h * W + w) * PIXEL)[:, None]
    weight_ptrs = weight_ptr + cols[None, :].to(tl.int64) * K
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + ks
        r = k // SPAN
        if SPAN == S * PIXEL and K == R * SPAN and DILATION_W == 1:
            x = tl.load(x_ptrs + (r * (DILATION_H * W * PIXEL) + k % SPAN)[None, :])
        else:  # masked lanes read the window's first pixel: cp.async forms every address (pytorch#186440)
            RUN: tl.constexpr = SPAN // PIXEL
            s = k // PIXEL % RUN  # not k % SPAN // PIXEL, of which the compiler knows too little to load whole pixels
            ok = (r < R) & (s < S)
            pixel = tl.where(ok, k // PIXEL * DILATION_W + r * (DILATION_H * W - RUN * DILATION_W), 0)
            x = tl.load(x_ptrs + (pixel * PIXEL + k % PIXEL)[None, :], mask=ok[None, :], other=0.0)
        weight = tl.load(weight_ptrs + k[:, None])
        acc = tl.dot(x, weight, acc, input_precision=PRECISION)
    store_block(
        acc, first, local, row_ok, col_block, N, out_ptr, bias_ptr, residual_ptr, bound_ptr, count_ptr, out_rows,
        BOUND, ACT, ALPHA, BETA, BLOCK_M, BLOCK_N, SUBTILES,
    )  # fmt: skip


def is_stem(channels: int, itemsize: int) -> bool:
    """Whether a pixel of so many channels is too short for a load of 16 bytes."""
    return channels * itemsize < 16


def span_of(channels: int, taps: int) -> int:
    """Elements of K that a row of ``taps`` pixels of a packed window takes."""
    return next_power_of_two(taps * _pixel_of(channels))


def _pixel_of(channels: int) -> int:
    return max(4, next_power_of_two(channels))


class _Operands(NamedTuple):
    """An image and a weight as the kernel reads them."""

    x: Tensor  # (B, height, width, pixel) in memory
    weight: Tensor  # (N, k) in memory
    height: int
    width: int
    pixel: int
    span: int
    k: int
    block_k: int


def stem_product(
    x: Tensor,  # (B, C, H, W)
    weight: Tensor,  # (N, C, R, S)
    out: Tensor,  # (B, N, P, Q) channels_last, to be filled
    geometry: ConvGeometry,
    tail: Tail,
    config: MatmulConfig | None = None,
) -> None:
    """Fill ``out`` with the epilogue of a convolution without groups, of so few channels that ``is_stem``."""
    n, channels, rows, taps = weight.shape
    m, itemsize = x.shape[0] * geometry.out_height * geometry.out_width, x.element_size()
    if config is None:
        table, k = STEM[architecture(capability_of(x))], rows * span_of(channels, taps)
        config = fitting(table, m, n, k, streaming_multiprocessors(x), tma=False, itemsize=itemsize)[0]
    elif config.loader != "pointer":
        raise ValueError(f"unit_fast.kernels: {config} cannot load {channels} channels; take a pointer configuration")
    block_k = config.k_of(itemsize)
    with on_device_of(x):
        read = _in_place(x, weight, geometry, block_k) or _packed(x, weight, geometry, block_k)
        constants = {name: value for name, value in geometry.constants().items() if not name.startswith("PAD")}
        _stem_kernel[(triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n),)](
            read.x,
            read.weight,
            out,
            tail.bias,
            tail.residual,
            tail.bound.values,
            tail.counts,
            m,
            n,
            read.height,
            read.width,
            tail.sample_rows,
            geometry.out_width,
            **constants,
            K=read.k,
            PIXEL=read.pixel,
            SPAN=read.span,
            MULTIPLE_W=vector_multiple(read.width, x),
            BLOCK_M=config.block_m,
            BLOCK_K=read.block_k,
            GROUP_M=config.group_m,
            **matmul_constants(config, tail, n, x, dot_precision(x, convolution=True)),
        )


def _in_place(x: Tensor, weight: Tensor, geometry: ConvGeometry, block_k: int) -> _Operands | None:
    """The operands as they are, where every run begins at a multiple of 8 bytes and K is whole blocks of some size."""
    channels, rows, taps = weight.shape[1:]
    height, width = x.shape[2:]
    span = taps * channels
    steps = (taps, geometry.stride[1], width)
    block_k = math.gcd(rows * span, block_k)
    whole = block_k >= 16 and all(size * channels * x.element_size() % 8 == 0 for size in steps)
    plain = geometry.padding == (0, 0) and geometry.dilation[1] == 1
    nhwc = all(operand.is_contiguous(memory_format=torch.channels_last) for operand in (x, weight))
    if not (whole and plain and nhwc):
        return None
    return _Operands(x, weight, height, width, channels, span, rows * span, block_k)


def _packed(x: Tensor, weight: Tensor, geometry: ConvGeometry, block_k: int) -> _Operands:
    """Copies of what the windows read, in one launch: the image with its border, and the weight in the same order."""
    n, channels, rows, taps = weight.shape
    pixel, span = _pixel_of(channels), span_of(channels, taps)
    k = triton.cdiv(rows * span, block_k) * block_k
    outputs = (geometry.out_height, geometry.out_width)
    height, width = (
        (size - 1) * stride + (kernel - 1) * dilation + 1
        for size, stride, kernel, dilation in zip(
            outputs, geometry.stride, geometry.kernel, geometry.dilation, strict=True
        )
    )
    check_kernel_operands("conv2d", x, (pixel, height, width))
    if sum((size - 1) * step for size, step in zip(x.shape[1:], x.stride()[1:], strict=True)) > LARGEST_SAMPLE:
        x = x.contiguous(memory_format=torch.channels_last)  # offsets within a sample are 32-bit
    packed = torch.empty((x.shape[0], height, width, pixel), dtype=x.dtype, device=x.device)
    packed_weight = torch.empty((n, k), dtype=x.dtype, device=x.device)
    block = TILE // pixel
    x_programs = x.shape[0] * triton.cdiv(height * width, block)
    _pack_kernel[(x_programs + triton.cdiv(n * k, block * pixel),)](
        x,
        packed,
        weight,
        packed_weight,
        x_programs,
        *x.stride(),
        *weight.stride(),
        channels,
        x.shape[2],
        x.shape[3],
        height,
        width,
        n * k,
        k,
        PAD_H=geometry.padding[0],
        PAD_W=geometry.padding[1],
        R=rows,
        S=taps,
        PIXEL=pixel,
        SPAN=span,
        BLOCK=block,
        num_warps=4,
        enable_fp_fusion=True,  # Triton 3.10 changes the default
    )
    return _Operands(packed, packed_weight, height, width, pixel, span, k, block_k)
