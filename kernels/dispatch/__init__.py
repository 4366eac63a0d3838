"""Which implementation computes a call: measured where that was asked for, remembered, and never trusted unseen."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from unit_fast.kernels.dispatch.dispatcher import Choice, Dispatcher, Policy, dispatcher_for, tuning
from unit_fast.kernels.dispatch.environment import environment_of, interpreting
from unit_fast.kernels.dispatch.store import DispatchWarning, Record, Store, cache_folder

__all__ = [
    "Choice",
    "DispatchWarning",
    "Dispatcher",
    "Policy",
    "Record",
    "Store",
    "cache_folder",
    "dispatcher_for",
    "environment_of",
    "interpreting",
    "run_conv2d",
    "run_epilogue",
    "run_linear",
    "run_max_pool2d",
    "tuning",
]


def run_epilogue(*args: Any, counts: Tensor | None = None) -> Tensor:
    """``epilogue`` by the implementation chosen for this shape; arguments in the order of the operator's schema.

    ``counts``, (N,) int32, is increased by each sample's number of values above their bound.
    """
    return dispatcher_for(args[0].device).run("epilogue", args, counts)


def run_linear(*args: Any, counts: Tensor | None = None) -> Tensor:
    """``linear`` by the implementation chosen for this shape; see ``run_epilogue``."""
    return dispatcher_for(args[0].device).run("linear", args, counts)


def run_conv2d(*args: Any, counts: Tensor | None = None) -> Tensor:
    """``conv2d`` by the implementation chosen for this shape; see ``run_epilogue``."""
    return dispatcher_for(args[0].device).run("conv2d", args, counts)


def run_max_pool2d(*args: Any) -> Tensor:
    """``max_pool2d`` by the implementation chosen for this shape; saturation is not counted."""
    return dispatcher_for(args[0].device).run("max_pool2d", args)
