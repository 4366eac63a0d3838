"""sanitize(): the drop-in module that serves in place of the model."""

import torch
from torch import nn
from torch.utils import _pytree as pytree

from unit_fast.bounds import Bounds, require_bounds
from unit_fast.capture import Example, call_arguments, capture
from unit_fast.errors import CaptureError
from unit_fast.runtime.backends import Backend
from unit_fast.runtime.calls import Call
from unit_fast.runtime.model import SanitizedModel
from unit_fast.sites import find_sites, insert_bounds


def sanitize(
    model: nn.Module | torch.export.ExportedProgram,
    bounds: Bounds,
    example_input: Example,
    backend: Backend = "auto",
    dtype: torch.dtype | None = None,
) -> SanitizedModel:
    """The sanitised model: called as ``model`` is, every bounded activation clamped.

    Args:
        model: the network the bounds were fitted on, on the device it shall run on. It stays as it is; its weights
            are shared unless ``dtype`` changes them.
        bounds: from :func:`unit_fast.calibrate` or :meth:`unit_fast.Bounds.load`.
        example_input: what the model is called with, see :func:`unit_fast.capture.capture`; one sample is
            enough.
        backend: "eager" runs the graph as it is and passes gradients; "compile" runs it through torch.compile with
            frozen weights, for inference only; "auto" takes the fastest that can run on the device and says once when
            it had to fall back. One that is named and cannot run raises.
        dtype: of weights, bounds and floating-point inputs, e.g. ``torch.float16``; the model's own when omitted.

    Raises:
        CaptureError: the model has no plain graph.
        BoundsMismatchError: the bounds belong to another model.
        BackendUnavailableError: the backend cannot run here.
    """
    require_bounds(bounds)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise CaptureError(f"dtype is {dtype!r}; expected a floating-point type such as torch.float16")
    captured = capture(model, example_input)
    bounds.require_model(captured.meta["fingerprint"], find_sites(captured))
    tensors = [*captured.parameters(), *captured.buffers(), *pytree.tree_leaves(call_arguments(example_input))]
    device = next(tensor.device for tensor in tensors if isinstance(tensor, torch.Tensor))
    graph_module = insert_bounds(captured, {name: bound.to(device, copy=True) for name, bound in bounds.items()})
    if dtype is not None:
        graph_module = graph_module.to(dtype)
    return SanitizedModel(graph_module, bounds, backend, dtype, Call.from_example(example_input))
