"""How operands lie in memory: the layouts the kernels read, and copies only where a layout is another one.

Kernels see every output as rows of channels: NHWC after a convolution, (tokens, features) after a linear. A per-neuron
bound is then read in the output's own order, so it must lie in memory as P, Q, N; a bound packed once by ``pack_bound``
is used without a copy from then on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["none", "tensor", "channel", "outer_channel", "neuron"]
"""How a per-sample operand is indexed: not at all, by the innermost axis in memory, by the outermost, by all axes."""

KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LARGEST_SAMPLE = 2**31 - 1  # positions within a sample are 32-bit; rows, and so whole tensors, are 64-bit


class Operand(NamedTuple):
    """A per-sample operand as the kernels read it."""

    kind: Kind
    values: Tensor | None  # contiguous: (), (C,) or one sample in memory order


def in_memory_order(operand: Tensor, rank: int, channels_last: bool) -> Tensor:
    """``operand`` with ``rank`` axes, ordered as a sample lies in memory: C, H, W or H, W, C."""
    operand = operand.reshape((1,) * (rank - operand.dim()) + tuple(operand.shape))
    return operand.permute(1, 2, 0) if channels_last and rank == 3 else operand


def sample_in_memory_order(sample: Sequence[int], channels_last: bool) -> tuple[int, ...]:
    """The sizes of one sample, outermost in memory first."""
    sizes = tuple(sample)
    return (*sizes[1:], sizes[0]) if channels_last and len(sizes) == 3 else sizes


def per_sample(
    operand: Tensor | None,  # broadcasts to (*S)
    sample: Sequence[int],  # S, as torch counts it
    channels_last: bool,
) -> Operand:
    """Classify a scale, bias or bound; copies only what is not yet contiguous in memory order."""
    if operand is None:
        return Operand("none", None)
    ordered = in_memory_order(operand, len(sample), channels_last)
    full = sample_in_memory_order(sample, channels_last)
    varying = [i for i, size in enumerate(ordered.shape) if size != 1]
    if not varying:
        return Operand("tensor", ordered.reshape(()))
    if varying == [len(full) - 1]:
        return Operand("channel", ordered.reshape(-1).contiguous())
    if varying == [0]:
        return Operand("outer_channel", ordered.reshape(-1).contiguous())
    return Operand("neuron", ordered.expand(full).contiguous())


def pack_bound(bound: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The same bound, of the same shape, laid out as the NHWC kernels read it (and cast to ``dtype``).

    Only a bound of shape (C, H, W) moves: its memory becomes H, W, C. ``conv2d`` and ``epilogue`` use a bound packed
    like this as it is; any other is copied in every call.
    """
    bound = bound if dtype is None else bound.to(dtype)
    if bound.dim() != 3:
        return bound.contiguous()
    return bound.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def check_kernel_operands(op: str, x: Tensor, sample: Sequence[int]) -> None:
    """Raise unless a kernel can take ``x`` and write samples of shape ``sample``."""
    if x.dtype not in KERNEL_DTYPES:
        raise TypeError(
            f"unit_fast.kernels: the {op} kernel takes float16, bfloat16 and float32, got {x.dtype}; "
            f"torch.ops.unit_fast.{op} computes others by its reference"
        )
    if math.prod(sample) > LARGEST_SAMPLE:
        raise ValueError(
            f"unit_fast.kernels: one sample of {tuple(sample)} has more than 2³¹ − 1 elements; split it before "
            f"the {op} kernel"
        )


def check_rows(op: str, rows: int) -> None:
    """Raise unless a matrix kernel can number its output rows: tile and descriptor coordinates are 32-bit."""
    if rows > LARGEST_SAMPLE:
        raise ValueError(f"unit_fast.kernels: {op} over {rows} rows, more than 2³¹ − 1; split the batch")


def check_counts(counts: Tensor, x: Tensor, bound: Tensor | None) -> None:
    """Raise unless ``counts`` can take one saturation count a sample of ``x``."""
    if bound is None:
        raise ValueError("unit_fast.kernels: saturation is counted against a bound, and none was given")
    if counts.dtype != torch.int32 or counts.shape != x.shape[:1] or counts.device != x.device:
        raise ValueError(
            f"unit_fast.kernels: counts is {counts.dtype} {tuple(counts.shape)} on {counts.device}; expected "
            f"torch.int32 ({x.shape[0]},) on {x.device}"
        )


def pack_weight(weight: Tensor, groups: int = 1) -> Tensor:
    """The same convolution weight (N, C / groups, R, S), laid out as the kernels read it: N, R, S, C.

    A depthwise weight, (C, 1, R, S) with ``groups`` = C > 1, becomes R, S, C. A packed weight is used without a copy.
    """
    if groups > 1 and weight.shape[:2] == (groups, 1):
        return weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    return weight.contiguous(memory_format=torch.channels_last)


class Tail(NamedTuple):
    """What the epilogue of a matrix kernel is given, in the kernel's terms."""

    bias: Tensor | None  # (N,)
    residual: Tensor | None  # (M, N) in memory
    bound: Operand
    counts: Tensor | None  # (samples,) int32
    sample_rows: int
    act: str
    act_args: Sequence[float]


class ConvGeometry(NamedTuple):
    """The shape of a convolution's walk over its input."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    out_height: int
    out_width: int

    def constants(self) -> dict[str, int]:
        """As the kernels' compile-time arguments."""
        return {
            "STRIDE_H": self.stride[0],
            "STRIDE_W": self.stride[1],
            "PAD_H": self.padding[0],
            "PAD_W": self.padding[1],
            "DILATION_H": self.dilation[0],
            "DILATION_W": self.dilation[1],
            "R": self.kernel[0],
            "S": self.kernel[1],
        }
