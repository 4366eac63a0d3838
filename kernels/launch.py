"""Launching on the device that holds the operands, from whatever device is current."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """A context in which ``x``'s GPU is the current one: Triton launches there, wherever the operands are."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def streaming_multiprocessors(x: Tensor) -> int:
    """How many programs run side by side; 4 in the interpreter, so that programs walk several tiles there too."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 4
