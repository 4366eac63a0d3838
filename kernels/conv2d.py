"""``conv2d`` by the Triton kernels: which of them a convolution goes to, and its operands in their layout.

1×1 convolutions without padding are plain products and go to ``linear``; images of very few channels to ``stem``, other
ones to ``implicit_gemm``; depthwise convolutions to ``depthwise``; those with other groups take torch's convolution and
the pointwise epilogue.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unit_fast.kernels.checks import check_conv2d
from unit_fast.kernels.configs import DepthwiseConfig, MatmulConfig
from unit_fast.kernels.depthwise import depthwise
from unit_fast.kernels.implicit_gemm import implicit_product
from unit_fast.kernels.launch import dot_precision
from unit_fast.kernels.layout import (
    ConvGeometry,
    Operand,
    Tail,
    check_counts,
    check_kernel_operands,
    check_rows,
    per_sample,
)
from unit_fast.kernels.linear import UNSTRIDED, Strided, multiply_rows
from unit_fast.kernels.pointwise import epilogue
from unit_fast.kernels.reference import memory_format_of
from unit_fast.kernels.stem import is_stem, stem_product


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
    packed (``layout.pack_bound``, ``layout.pack_weight``); others are copied. So is an x of fewer than 16 bytes a pixel
    (but for patches that ``stem`` reads where they lie), and one of fewer than 32 whose channels are no power of two.
    """
    batch, n, p, q = check_conv2d(x, weight, bias, residual, bound, stride, padding, dilation, groups, act, act_args)
    check_kernel_operands("conv2d", x, (n, p, q))
    check_kernel_operands("conv2d", x, x.shape[1:])
    check_rows("conv2d", batch * p * q)
    if counts is not None:
        check_counts(counts, x, bound)
    layout, nhwc = memory_format_of(x, weight), torch.channels_last
    out = torch.empty((batch, n, p, q), dtype=x.dtype, device=x.device, memory_format=nhwc)
    kernel = (weight.shape[2], weight.shape[3])
    geometry = ConvGeometry(kernel, _pair(stride), _pair(padding), _pair(dilation), p, q)
    if out.numel() == 0:
        return out.contiguous(memory_format=layout)
    is_depthwise = groups == x.shape[1] == n and groups > 1
    by_rows = kernel == (1, 1) and geometry.padding == (0, 0)
    stem = is_stem(x.shape[1], x.element_size()) and groups == 1 and not by_rows
    x = x if stem else x.contiguous(memory_format=nhwc)  # a stem is read in any layout, once
    if groups > 1 and not is_depthwise:
        out = conv2d_then_epilogue(x, weight, bias, residual, bound, geometry, groups, act, act_args, counts)
        return out.contiguous(memory_format=layout)
    operand = per_sample(bound, (n, p, q), channels_last=True)
    if (
        operand.kind == "outer_channel" and operand.values is not None
    ):  # per row of the map: written out for every neuron
        operand = Operand("neuron", operand.values[:, None, None].expand(p, q, n).contiguous())
    residual = None if residual is None else residual.contiguous(memory_format=nhwc)
    tail = Tail(bias, residual, operand, counts, p * q, act, act_args)
    if is_depthwise:
        depthwise(x, weight, out, geometry, tail, config if isinstance(config, DepthwiseConfig) else None)
        return out.contiguous(memory_format=layout)
    weight = weight.contiguous(memory_format=nhwc)
    tile = config if isinstance(config, MatmulConfig) else None
    if by_rows:
        rows, matrix = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), weight.reshape(n, -1)
        strided = UNSTRIDED
        if geometry.stride != (1, 1):
            strided = Strided(geometry.stride, q, x.shape[3], x.shape[2] * x.shape[3])
        precision = dot_precision(x, convolution=True)
        multiply_rows(rows, matrix, out, batch * p * q, tail, strided, precision, tile)
    elif stem:
        stem_product(x, weight, out, geometry, tail, tile)
    else:
        implicit_product(x, weight, out, geometry, tail, tile)
    return out.contiguous(memory_format=layout)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second
