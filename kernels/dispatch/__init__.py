"""Which implementation computes a call: measured where that was asked for, remembered, and never trusted unseen."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from unit_fast.kernels.dispatch.dispatcher import dispatcher_for

__all__ = ["dispatcher_for", "run_conv2d", "run_epilogue", "run_linear"]


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
