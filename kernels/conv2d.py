"""Convolution as an implicit matrix product over NHWC, with the epilogue on its accumulator.

M = N·P·Q output positions, N = output channels, K = R·S·C. One flat loop runs over K (a loop unrolled by taps loses its
pipelining: no cp.async is left), taps innermost, so that neighbouring steps read overlapping parts of the image from
cache. 1×1 convolutions without padding are plain products and go to ``linear``; images of few channels (the stem) are
padded to 16 bytes a pixel and walk K without regard to taps; depthwise ones have a kernel of their own; other grouped
ones take torch's convolution and the pointwise epilogue.
"""
# A kernel's arguments are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from unit_fast.kernels.checks import check_conv2d
from unit_fast.kernels.configs import (
    CONV2D,
    DepthwiseConfig,
    MatmulConfig,
    activation_constants,
    architecture,
    fitting,
    next_power_of_two,
)
from unit_fast.kernels.depthwise import depthwise
from unit_fast.kernels.epilogue import store_block
from unit_fast.kernels.launch import (
    capability_of,
    dot_precision,
    on_device_of,
    streaming_multiprocessors,
    vector_multiple,
)
from unit_fast.kernels.layout import ConvGeometry, Tail, check_counts, check_kernel_operands, per_sample
from unit_fast.kernels.linear import UNSTRIDED, Strided, multiply_rows, tile_of
from unit_fast.kernels.pointwise import epilogue
from unit_fast.kernels.reference import memory_format_of


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
    first = row_block.to(tl.int64) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    rows = tl.where(rows < M - first, rows, 0) + (first % out_rows).to(tl.int32)
    image = (first // out_rows + rows // out_rows) * (H * W * C)  # 64-bit; offsets within an image are 32-bit
    within = rows % out_rows
    h_start = (within // Q) * STRIDE_H - PAD_H
    w_start = (within % Q) * STRIDE_W - PAD_W
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
        acc, row_block, col_block, M, N, out_ptr, bias_ptr, residual_ptr, bound_ptr, count_ptr, out_rows,
        BOUND, ACT, ALPHA, BETA, BLOCK_M, BLOCK_N, SUBTILES,
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
    if flat:  # whole vectors a pixel, and a power of two, so that taps and channels are shifts and masks of k
        missing = max(vector, next_power_of_two(x.shape[1])) - x.shape[1]
        x = F.pad(x, (0, 0, 0, 0, 0, missing)).contiguous(memory_format=torch.channels_last)
        weight = F.pad(weight, (0, 0, 0, 0, 0, missing)).contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    m, n = batch * geometry.out_height * geometry.out_width, weight.shape[0]
    if config is None:
        table = CONV2D[architecture(capability_of(x))]
        config = fitting(table, m, n, streaming_multiprocessors(x), tma=False, itemsize=x.element_size())[0]
    block_k = config.k_of(x.element_size())
    if not flat:
        block_k = min(block_k, max(16, next_power_of_two(channels)))
    act, alpha, beta = activation_constants(tail.act, tail.act_args)
    grid = (triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n),)
    with on_device_of(x):
        _conv2d_kernel[grid](
            x,
            weight,
            out,
            tail.bias,
            tail.residual,
            tail.bound.values,
            tail.counts,
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
            MULTIPLE_N=vector_multiple(n, x),
            BOUND=tail.bound.kind,
            ACT=act,
            ALPHA=alpha,
            BETA=beta,
            PRECISION=dot_precision(x, convolution=True),
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=block_k,
            GROUP_M=config.group_m,
            SUBTILES=config.subtiles,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=True,  # Triton 3.10 changes the default
        )


def conv2d_then_epilogue(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    bound: Tensor | None,
    geometry: ConvGeometry,
    groups: int,
    act: str,
    act_args: Sequence[float],
    counts: Tensor | None,
) -> Tensor:
    """torch's convolution (cuDNN's on a GPU) and the pointwise kernel after it."""
    y = F.conv2d(x, weight, None, geometry.stride, geometry.padding, geometry.dilation, groups)
    column = None if bias is None else bias[:, None, None]
    return epilogue(y, None, column, residual, bound, act, act_args, counts=counts)


def conv2d(
    x: Tensor,  # (B, C, H, W), float16, bfloat16 or float32
    weight: Tensor,  # (N, C / groups, R, S), x.dtype
    bias: Tensor | None = None,  # (N,)
    residual: Tensor | None = None,  # (B, N, P, Q), x.dtype
    bound: Tensor | None = None,  # broadcasts to (N, P, Q)
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    act: str = "identity",
    act_args: Sequence[float] = (),
    *,
    counts: Tensor | None = None,  # (B,) int32: increased by each sample's number of values above their bound
    config: MatmulConfig | DepthwiseConfig | None = None,
) -> Tensor:  # (B, N, P, Q), x.dtype
    """``ops.conv2d`` by the Triton kernels; same arguments, values and errors. ``counts`` needs a bound.

    Operands are used where they lie if x, weight and residual are channels_last and bound and a depthwise weight are
    packed (``layout.pack_bound``, ``layout.pack_weight``); others are copied. Up to 16 half-precision or 8 float32
    channels are padded, which copies x.
    """
    batch, n, p, q = check_conv2d(x, weight, bias, residual, bound, stride, padding, dilation, groups, act, act_args)
    check_kernel_operands("conv2d", x, (n, p, q))
    check_kernel_operands("conv2d", x, x.shape[1:])
    if counts is not None:
        check_counts(counts, x, bound)
    layout, nhwc = memory_format_of(x, weight), torch.channels_last
    out = torch.empty((batch, n, p, q), dtype=x.dtype, device=x.device, memory_format=nhwc)
    kernel = (weight.shape[2], weight.shape[3])
    geometry = ConvGeometry(kernel, _pair(stride), _pair(padding), _pair(dilation), p, q)
    if out.numel() == 0:
        return out.contiguous(memory_format=layout)
    x = x.contiguous(memory_format=nhwc)
    is_depthwise = groups == x.shape[1] == n and groups > 1
    if groups > 1 and not is_depthwise:
        out = conv2d_then_epilogue(x, weight, bias, residual, bound, geometry, groups, act, act_args, counts)
        return out.contiguous(memory_format=layout)
    operand = per_sample(bound, (n, p, q), channels_last=True)
    if operand.kind == "outer_channel" and bound is not None:  # per row of the map: written out for every neuron
        operand = per_sample(bound.expand(n, p, q), (n, p, q), channels_last=True)
    residual = None if residual is None else residual.contiguous(memory_format=nhwc)
    tail = Tail(bias, residual, operand, counts, p * q, act, act_args)
    if is_depthwise:
        depthwise(x, weight, out, geometry, tail, config if isinstance(config, DepthwiseConfig) else None)
        return out.contiguous(memory_format=layout)
    weight = weight.contiguous(memory_format=nhwc)
    tile = config if isinstance(config, MatmulConfig) else None
    if kernel == (1, 1) and geometry.padding == (0, 0):
        rows, matrix = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), weight.reshape(n, -1)
        strided = UNSTRIDED
        if geometry.stride != (1, 1):
            strided = Strided(geometry.stride, q, x.shape[3], x.shape[2] * x.shape[3])
        precision = dot_precision(x, convolution=True)
        multiply_rows(rows, matrix, out, batch * p * q, tail, strided, precision, tile)
    else:
        implicit_product(x, weight, out, geometry, tail, tile)
    return out.contiguous(memory_format=layout)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second
