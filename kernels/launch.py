"""Launching on the device that holds the operands, from whatever device is current."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor


class Gpu(NamedTuple):
    """What launchers ask of a GPU: its compute capability, major·10 + minor, and its multiprocessors."""

    capability: int
    multiprocessors: int


ABSENT = Gpu(90, 4)
"""For operands on the CPU: in the interpreter the newest paths are tested, and programs walk over several tiles."""


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """A context in which ``x``'s GPU is the current one: Triton launches there, wherever the operands are."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def streaming_multiprocessors(x: Tensor) -> int:
    """How many programs run side by side."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else ABSENT.multiprocessors


def capability_of(x: Tensor) -> int:
    """The compute capability, major·10 + minor."""
    if not x.is_cuda:
        return ABSENT.capability
    major, minor = torch.cuda.get_device_capability(x.device)
    return major * 10 + minor


def dot_precision(x: Tensor, *, convolution: bool) -> str:
    """How float32 is multiplied: TF32 where torch allows it, else three TF32 products that together carry float32."""
    # torch.backends.cudnn is replaced at import by an object that mypy does not see
    backend = torch.backends.cudnn.conv if convolution else torch.backends.cuda.matmul  # type: ignore[attr-defined]
    return "tf32" if x.dtype == torch.float32 and backend.fp32_precision == "tf32" else "tf32x3"


def tma_can_address(*matrices: Tensor) -> bool:
    """Whether a tensor map can describe these matrices: 16-byte aligned, rows a multiple of 16 bytes apart."""
    return all(t.data_ptr() % 16 == 0 and t.stride(0) * t.element_size() % 16 == 0 for t in matrices)


def vector_multiple(size: int, x: Tensor) -> int:
    """The largest power of two that divides ``size``, up to the elements of ``x`` in 16 bytes: the widest access."""
    return math.gcd(size, 16 // x.element_size())
