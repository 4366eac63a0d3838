"""cuDNN's graph API (PyPI: nvidia-cudnn-frontend): product, bias, residual, activation and bound as one graph.

A plan is the work of one engine for the whole graph: building it fails where no engine takes all of it, so nothing is
silently left for a second pass. Whether that engine launches one kernel or several is its own affair; the clock judges.

Source: https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from unit_fast.kernels.checks import check_conv2d, check_linear
from unit_fast.kernels.launch import dot_precision, on_device_of
from unit_fast.kernels.reference import memory_format_of

DTYPES = {torch.float16: "HALF", torch.bfloat16: "BFLOAT16", torch.float32: "FLOAT"}
ACTIVATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "identity": lambda _, v: v,
    "relu": lambda graph, v: graph.relu(input=v),
    "relu6": lambda graph, v: graph.relu(input=v, upper_clip=6.0),
    "gelu": lambda graph, v: graph.gelu(input=v),
    "gelu_tanh": lambda graph, v: graph.gelu_approx_tanh(input=v),
    "silu": lambda graph, v: graph.swish(input=v),
}
"""Those that are one node of the graph."""


@dataclass(frozen=True)
class _Call:
    """One computation, on tensors of the very shapes and strides that the graph is told.

    ``options`` are those that ``product`` was made with, for telling calls apart.
    """

    product: Callable[[Any, Any, Any], Any]
    options: tuple[Any, ...]
    operands: Mapping[str, Tensor]
    out: Tensor
    act: str


@dataclass(frozen=True)
class _Plan:
    graph: Any
    inputs: Mapping[str, Any]
    output: Any
    workspace: int  # bytes


class CudnnGraphs:
    """The plans built with one installed cuDNN, each once; safe from several threads.

    ``conv2d`` and ``linear`` take all arguments of the operators' schemas. They raise TypeError or ValueError where
    those do not fit, or where no engine of this cuDNN computes the whole in one plan.
    """

    def __init__(self, cudnn: Any) -> None:
        self.version: str = cudnn.backend_version_string()
        self._cudnn = cudnn
        self._plans: dict[Any, _Plan] = {}
        self._handles: dict[torch.device, Any] = {}
        self._lock = threading.Lock()  # a handle may serve several threads, but one at a time

    def conv2d(self, *args: Any) -> Tensor:
        """``ops.conv2d`` of one group, NHWC inside; operands that lie otherwise are copied."""
        shape = check_conv2d(*args)
        x, weight, bias, residual, bound, stride, padding, dilation, groups, act, _ = args
        if groups != 1:
            raise ValueError(f"cuDNN's graph is built for one group only, got {groups}")
        if bound is not None and bound.numel() > max(1, bound.shape[0] if bound.dim() == 3 else 1):
            # cuDNN 9.19 on an H200 takes such a graph, and its kernel reads at a misaligned address: after that fault
            # the process has no GPU any more.
            raise ValueError(f"cuDNN's graph is built for bounds alike in every position, got {tuple(bound.shape)}")
        column = None if bias is None else bias[None, :, None, None]
        ceiling = None if bound is None else bound.to(x.dtype)[(None,) * (4 - bound.dim())]
        given = {"x": x, "weight": weight, "bias": column, "residual": residual, "bound": ceiling}
        operands = {name: _nhwc(t) for name, t in given.items() if t is not None}
        geometry = {"padding": list(padding), "stride": list(stride), "dilation": list(dilation)}
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        options = ("conv2d", *stride, *padding, *dilation)
        self._run(
            _Call(lambda g, a, b: g.conv_fprop(image=a, weight=b, **geometry), options, operands, _nhwc(out), act)
        )
        return out.contiguous(memory_format=memory_format_of(x, weight))

    def linear(self, *args: Any) -> Tensor:
        """``ops.linear`` for a bound that is the same in every row."""
        shape = check_linear(*args)
        x, weight, bias, residual, bound, act, _ = args
        if bound is not None and bound.numel() != (bound.shape[-1] if bound.dim() else 1):
            raise ValueError(f"cuDNN's graph is built for bounds alike in every row, got {tuple(bound.shape)}")
        (n, k), ceiling = weight.shape, None if bound is None else bound.to(x.dtype).reshape(-1)
        given = {"x": x, "bias": bias, "residual": residual, "bound": ceiling}
        operands = {name: _rows(t) for name, t in given.items() if t is not None}
        operands["weight"] = _aligned(weight.contiguous()).as_strided((1, k, n), (n * k, 1, k))
        out = torch.empty(shape, dtype=x.dtype, device=x.device)
        self._run(_Call(lambda g, a, b: g.matmul(A=a, B=b), ("linear",), operands, _rows(out), act))
        return out

    def _run(self, call: _Call) -> None:
        out, operands = call.out, call.operands
        unknown = {t.dtype for t in operands.values()} - set(DTYPES)
        if call.act not in ACTIVATIONS or unknown:
            raise ValueError(f"cuDNN's graph is not built for activation {call.act!r} of {unknown or out.dtype}")
        if out.dtype == torch.float32 and dot_precision(out, convolution=call.options[0] == "conv2d") != "tf32":
            raise ValueError("cuDNN's fusing engines multiply float32 as TF32, which torch is set not to allow")
        specs = tuple((name, t.shape, t.dtype) for name, t in operands.items())
        signature = (out.device, call.options, call.act, out.shape, specs)
        with self._lock, on_device_of(out):
            plan = self._plans.get(signature)
            if plan is None:
                plan = self._plans[signature] = self._planned(call)
            self._execute(plan, operands, out)

    def _planned(self, call: _Call) -> _Plan:
        """The plan of the first spelling of the bound that an engine takes and that hands a NaN on."""
        reasons: list[str] = []
        for spelling in ("min", "select") if "bound" in call.operands else ("no bound",):
            try:
                plan = self._built(call, spelling)
            except (RuntimeError, self._cudnn.cudnnGraphNotSupportedError) as error:
                reasons.append(f"{spelling}: {str(error).strip() or type(error).__name__}")
                continue
            # The reference keeps NaN, which random operands do not show; what cuDNN's minimum does is not documented.
            trial = torch.zeros_like(call.out)
            self._execute(plan, {**call.operands, "x": torch.full_like(call.operands["x"], math.nan)}, trial)
            if bool(trial.isnan().any()):
                return plan
            reasons.append(f"{spelling}: NaN becomes a number")
        raise ValueError(f"cuDNN {self.version} has no engine for the whole graph ({'; '.join(reasons)})")

    def _built(self, call: _Call, spelling: str) -> _Plan:
        cudnn, out = self._cudnn, call.out
        kind = {dtype: getattr(cudnn.data_type, name) for dtype, name in DTYPES.items()}
        graph = cudnn.pygraph(
            io_data_type=kind[out.dtype],
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=self._handle(out.device),
        )
        inputs = {
            name: graph.tensor(name=name, dim=list(t.shape), stride=list(t.stride()), data_type=kind[t.dtype])
            for name, t in call.operands.items()
        }
        y = call.product(graph, inputs["x"], inputs["weight"])
        for name in ("bias", "residual"):
            y = graph.add(a=y, b=inputs[name]) if name in inputs else y
        y = ACTIVATIONS[call.act](graph, y)
        if spelling == "min":
            y = graph.min(input0=y, input1=inputs["bound"])
        elif spelling == "select":
            above = graph.cmp_gt(input=y, comparison=inputs["bound"]).set_data_type(cudnn.data_type.BOOLEAN)
            y = graph.binary_select(input0=inputs["bound"], input1=y, mask=above)
        y.set_output(True).set_dim(list(out.shape)).set_stride(list(out.stride())).set_data_type(kind[out.dtype])
        graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        return _Plan(graph, inputs, y, graph.get_workspace_size())

    def _execute(self, plan: _Plan, tensors: Mapping[str, Tensor], out: Tensor) -> None:
        """Launch on torch's current stream; the workspace is of torch's memory, and so of a graph's under capture."""
        handle = self._handle(out.device)
        self._cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream(out.device).cuda_stream)
        workspace = torch.empty(plan.workspace, dtype=torch.uint8, device=out.device)
        buffers = {plan.inputs[name]: tensor for name, tensor in tensors.items()}
        plan.graph.execute({**buffers, plan.output: out}, workspace, handle=handle)

    def _handle(self, device: torch.device) -> Any:
        if device not in self._handles:
            self._handles[device] = self._cudnn.create_handle()
        return self._handles[device]


@cache
def installed() -> CudnnGraphs | None:
    """The plans of the cuDNN that ``import cudnn`` finds; None where it finds none."""
    try:
        return CudnnGraphs(import_module("cudnn"))
    except Exception:  # noqa: BLE001 - its import also loads libcudnn, and fails in the loader's own ways
        return None


def _nhwc(tensor: Tensor) -> Tensor:
    """Strides written out: torch leaves those of dimensions of size 1 as they happen to be."""
    _, c, h, w = tensor.shape
    laid = _aligned(tensor.contiguous(memory_format=torch.channels_last))
    return laid.as_strided(tensor.shape, (c * h * w, 1, w * c, c))


def _rows(tensor: Tensor) -> Tensor:
    return _aligned(tensor.contiguous()).view(1, -1, tensor.shape[-1])


def _aligned(tensor: Tensor) -> Tensor:
    """To 16 bytes, which the frontend promises its engines of every operand."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
