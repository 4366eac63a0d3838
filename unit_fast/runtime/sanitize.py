"""sanitize(): the drop-in module that serves in place of the model."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from unit_fast.bounds import Bounds, require_bounds
from unit_fast.capture import Example, call_arguments, capture
from unit_fast.errors import BackendUnavailableError, CaptureError, DataError
from unit_fast.fusion.gather_on_one_device import make_in
from unit_fast.fusion.rewrite import set_constant
from unit_fast.runtime.backends import Backend
from unit_fast.runtime.calls import Call
from unit_fast.runtime.int8 import SESSIONS, quantised
from unit_fast.runtime.model import SanitizedModel
from unit_fast.runtime.program import Program
from unit_fast.sites import find_sites, insert_bounds


def sanitize(
    model: nn.Module | torch.export.ExportedProgram,
    bounds: Bounds,
    example_input: Example,
    backend: Backend = "auto",
    dtype: torch.dtype | Literal["int8"] | None = None,
    *,
    calibration_data: Iterable[Any] | None = None,
) -> SanitizedModel:
    """The sanitised model: called as ``model`` is, every bounded activation clamped.

    Args:
        model: the network the bounds were fitted on, on the device it shall run on. It stays as it is, and its
            weights are copied: sanitize again after changing the model.
        bounds: from :func:`unit_fast.calibrate` or :meth:`unit_fast.Bounds.load`.
        example_input: what the model is called with, see :func:`unit_fast.capture.capture`; one sample is
            enough.
        backend: "eager" runs the graph as it is and passes gradients; the others are for inference only: "compile"
            (torch.compile's compiler, frozen weights), "onnxruntime" and "openvino" (on the CPU), "triton" (the fused
            kernels, on CUDA). "auto" takes the fastest on the device, by measurement in
            :meth:`SanitizedModel.warmup`, and says once when it had to fall back. One that is named and cannot run
            raises.
        dtype: of weights, bounds and floating-point inputs, e.g. ``torch.float16``; the model's own when omitted.
            "int8" quantises a float32 model, by ONNX Runtime, for it and OpenVINO on the CPU; inputs and outputs stay
            float32.
        calibration_data: for "int8": batches ``(x, y)`` or ``x`` of a few hundred clean samples, iterated once.

    Raises:
        CaptureError: the model has no plain graph.
        BoundsMismatchError: the bounds belong to another model.
        BackendUnavailableError: the backend cannot run here.
        DataError: calibration_data is missing or unusable.
        ParityError: int8 changes too many predictions.
    """
    require_bounds(bounds)
    _check_dtype(dtype, backend, calibration_data)
    captured = capture(model, example_input)
    bounds.require_model(captured.meta["fingerprint"], find_sites(captured))
    tensors = [*captured.parameters(), *captured.buffers(), *pytree.tree_leaves(call_arguments(example_input))]
    device = next(tensor.device for tensor in tensors if isinstance(tensor, Tensor))
    graph_module = insert_bounds(captured, {name: bound.to(device, copy=True) for name, bound in bounds.items()})
    _own_weights(graph_module)
    if isinstance(dtype, torch.dtype):
        floating = (tensor.dtype for tensor in graph_module.parameters() if tensor.is_floating_point())
        before = next(floating, torch.float32)
        graph_module = graph_module.to(dtype)
        make_in(graph_module, before, dtype)
    example = Call.from_example(example_input)
    if calibration_data is None:
        return SanitizedModel(graph_module, bounds, backend, dtype if isinstance(dtype, torch.dtype) else None, example)
    model_in_int8 = SanitizedModel(graph_module, bounds, "onnxruntime" if backend == "auto" else backend, None, example)
    model_in_int8.run_by(quantised(Program(graph_module, bounds, example), backend, calibration_data), backend)
    return model_in_int8


def _own_weights(graph_module: fx.GraphModule) -> None:
    """Copy every tensor that the graph reads: once where several names share one.

    Weights that took up a BatchNorm are copies already: a change of the model would reach the others alone.
    """
    copies: dict[tuple[Any, ...], Tensor] = {}
    named = [
        *graph_module.named_parameters(remove_duplicate=False),
        *graph_module.named_buffers(remove_duplicate=False),
    ]
    for path, tensor in named:
        place = tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
        if place not in copies:
            copies[place] = tensor.detach().clone()
        set_constant(graph_module, path, copies[place])


def _check_dtype(dtype: object, backend: str, calibration_data: object) -> None:
    if dtype == "int8":
        if backend not in ("auto", *SESSIONS):
            raise BackendUnavailableError(
                f'dtype="int8" runs by {" or ".join(SESSIONS)}; got backend={backend!r}: leave it out'
            )
        if calibration_data is None:
            raise DataError(
                'dtype="int8" needs calibration_data: batches of (x, y) or x with a few hundred clean samples, such as '
                "the loader that the bounds were calibrated on"
            )
        return
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise CaptureError(f'dtype is {dtype!r}; expected a floating-point type such as torch.float16, or "int8"')
    if calibration_data is not None:
        raise DataError('calibration_data serves dtype="int8" only; leave it out')
