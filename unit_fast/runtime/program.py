"""What a backend is given to run: the sanitised graph, alone and with what its clamps took away."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx

from unit_fast.bounds import Bounds
from unit_fast.fusion.read_clamps import clamp_nodes, count_saturated, measure_excess, rows_per_sample
from unit_fast.runtime.calls import Call

__all__ = ["Program", "clamp_nodes", "rows_per_sample"]


@dataclass(frozen=True)
class Program:
    """A sanitised graph as it is to be run.

    Attributes:
        module: the graph on its device and in its dtype: the reference. Never changed by a backend; one that rewrites
            graphs copies it first (``rewrite.copy_graph``).
        bounds: the bounds in it.
        example: samples like those it will be called with, on its device; floating tensors in any dtype.
    """

    module: fx.GraphModule
    bounds: Bounds
    example: Call

    @cached_property
    def device(self) -> torch.device:
        """Where it is run: single numbers may be on the CPU all the same."""
        tensors = sorted(self.example.tensors(), key=lambda tensor: tensor.ndim == 0)
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of its first floating tensor."""
        tensors = (*self.module.parameters(), *self.module.buffers(), *self.example.tensors())
        return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)

    @cached_property
    def counting(self) -> fx.GraphModule:
        """The same graph returning ``(output, counts)``; see :func:`count_saturated`."""
        return count_saturated(self.module)

    @cached_property
    def inspecting(self) -> fx.GraphModule:
        """The same graph returning ``(output, counts, excess)``; see :func:`measure_excess`."""
        return measure_excess(self.module)
