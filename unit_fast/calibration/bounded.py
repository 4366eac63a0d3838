"""The captured graph with bounds that change from step to step and pass gradients."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functional_call

from unit_fast.calibration.context import CalibrationContext
from unit_fast.calibration.granularity import unit_shape
from unit_fast.calibration.inputs import Inputs
from unit_fast.capture import call_arguments
from unit_fast.kernels.ops import clamp_bound_once
from unit_fast.sites import bound_path, insert_bounds


class BoundedGraph:
    """``context.graph`` as a function of bounds and inputs. Its weights take no gradients.

    Args:
        context: of the calibration; gives graph, sites, granularity and device.
    """

    def __init__(self, context: CalibrationContext) -> None:
        placeholders = {
            site.name: torch.full(unit_shape(site, context.granularity), torch.inf, device=context.device)
            for site in context.sites
        }
        self._graph: fx.GraphModule = insert_bounds(context.graph, placeholders)
        for node in self._graph.graph.find_nodes(op="call_function", target=torch.ops.unit_fast.clamp_bound.default):
            node.target = clamp_bound_once  # one backward pass over memory on CUDA; nothing here differentiates twice
        self._graph.recompile()
        self._paths = {site.name: bound_path(site.name) for site in context.sites}
        self._logits = context.logits

    def __call__(self, bounds: Mapping[str, Tensor], x: Inputs) -> Tensor:
        """Logits (N, classes) for inputs ``x`` with ``bounds`` by site name, each broadcastable to one sample."""
        args, kwargs = call_arguments(x)
        output: Any = functional_call(
            self._graph, {self._paths[name]: bound for name, bound in bounds.items()}, args, kwargs
        )
        return self._logits(output)
