"""A stand-in for the module ``cudnn``: the part of its graph API that we call, evaluated by torch in float64.

It holds callers to what the real one is told and trusts: every buffer has the shape, strides, dtype and alignment that
its graph tensor was declared with.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

data_type = enum.Enum("data_type", ["FLOAT", "HALF", "BFLOAT16", "BOOLEAN"])
heur_mode = enum.Enum("heur_mode", ["A", "FALLBACK"])
DTYPES = {torch.float32: data_type.FLOAT, torch.float16: data_type.HALF, torch.bfloat16: data_type.BFLOAT16}


class NotSupportedError(Exception):
    """No engine; as the real one's, no RuntimeError."""


class GraphTensor:
    """A node: an input, or what ``value`` computes of the inputs' buffers."""

    def __init__(self, value: Callable[[dict[GraphTensor, Tensor]], Tensor] | None = None, **declared: Any) -> None:
        self.value = value
        self.declared = declared
        self.output = False

    def set_output(self, flag: bool) -> GraphTensor:
        self.output = flag
        return self

    def set_dim(self, dim: list[int]) -> GraphTensor:
        self.declared["dim"] = dim
        return self

    def set_stride(self, stride: list[int]) -> GraphTensor:
        self.declared["stride"] = stride
        return self

    def set_data_type(self, kind: Any) -> GraphTensor:
        self.declared["data_type"] = kind
        return self

    def of(self, buffers: dict[GraphTensor, Tensor]) -> Tensor:
        return buffers[self].double() if self.value is None else self.value(buffers)

    def check(self, buffer: Tensor) -> None:
        assert list(buffer.shape) == self.declared["dim"]
        assert list(buffer.stride()) == self.declared["stride"]
        assert DTYPES[buffer.dtype] is self.declared["data_type"]
        assert buffer.data_ptr() % 16 == 0


class Graph:
    """What ``cudnn.pygraph`` makes."""

    def __init__(self, cudnn: FakeCudnn, **settings: Any) -> None:
        self._cudnn = cudnn
        self.settings = settings
        self.inputs: dict[str, GraphTensor] = {}
        self.operations: list[str] = []
        self.options: dict[str, Any] = {}
        self.nodes: list[GraphTensor] = []

    def tensor(self, *, name: str, dim: list[int], stride: list[int], data_type: Any) -> GraphTensor:
        self.inputs[name] = GraphTensor(dim=dim, stride=stride, data_type=data_type)
        return self.inputs[name]

    def _node(self, operation: str, function: Callable[..., Tensor], *operands: GraphTensor) -> GraphTensor:
        self.operations.append(operation)
        self.nodes.append(GraphTensor(lambda buffers: function(*(operand.of(buffers) for operand in operands))))
        return self.nodes[-1]

    def conv_fprop(self, *, image: Any, weight: Any, padding: list[int], stride: list[int], dilation: list[int]) -> Any:
        self.options = {"padding": padding, "stride": stride, "dilation": dilation}
        return self._node(
            "conv", lambda x, w: F.conv2d(x, w, None, stride, padding, dilation) * self._cudnn.error, image, weight
        )

    def matmul(self, *, A: Any, B: Any) -> GraphTensor:
        return self._node("matmul", torch.matmul, A, B)

    def add(self, *, a: Any, b: Any) -> GraphTensor:
        return self._node("add", torch.add, a, b)

    def relu(self, *, input: Any, upper_clip: float | None = None) -> GraphTensor:
        return self._node("relu", lambda v: v.clamp(0.0, upper_clip), input)

    def gelu(self, *, input: Any) -> GraphTensor:
        return self._node("gelu", F.gelu, input)

    def gelu_approx_tanh(self, *, input: Any) -> GraphTensor:
        return self._node("gelu_approx_tanh", lambda v: F.gelu(v, approximate="tanh"), input)

    def swish(self, *, input: Any) -> GraphTensor:
        return self._node("swish", F.silu, input)

    def min(self, *, input0: Any, input1: Any) -> GraphTensor:
        return self._node("min", torch.fmin if self._cudnn.min_drops_nan else torch.minimum, input0, input1)

    def cmp_gt(self, *, input: Any, comparison: Any) -> GraphTensor:
        return self._node("cmp_gt", torch.gt, input, comparison)

    def binary_select(self, *, input0: Any, input1: Any, mask: Any) -> GraphTensor:
        assert mask.declared["data_type"] is data_type.BOOLEAN
        return self._node("select", lambda a, b, m: torch.where(m, a, b), input0, input1, mask)

    def build(self, modes: list[Any]) -> None:
        assert modes == [heur_mode.A, heur_mode.FALLBACK]
        assert [node.output for node in self.nodes] == [False] * (len(self.nodes) - 1) + [True]
        refused = self._cudnn.refuses.intersection(self.operations)
        if refused:
            raise NotSupportedError(f"No valid engine configs for {sorted(refused)}")
        self._cudnn.graphs.append(self)

    def get_workspace_size(self) -> int:
        return 48

    def execute(self, buffers: dict[GraphTensor, Tensor], workspace: Tensor, handle: int) -> None:
        assert handle == self.settings["handle"]
        assert workspace.numel() == self.get_workspace_size()
        assert set(buffers) == {*self.inputs.values(), self.nodes[-1]}
        for tensor, buffer in buffers.items():
            tensor.check(buffer)
        buffers[self.nodes[-1]].copy_(self.nodes[-1].of(buffers))
        self._cudnn.executions += 1


class FakeCudnn:
    """The module.

    Args:
        refuses: operations that no engine fuses.
        min_drops_nan: whether a minimum makes a number of NaN, as the instruction ``min.f32`` does.
        error: products are this many times too large.
    """

    cudnnGraphNotSupportedError = NotSupportedError
    data_type = data_type
    heur_mode = heur_mode

    def __init__(self, refuses: tuple[str, ...] = (), min_drops_nan: bool = False, error: float = 1.0) -> None:
        self.refuses = set(refuses)
        self.min_drops_nan = min_drops_nan
        self.error = error
        self.graphs: list[Graph] = []
        self.handles = 0
        self.executions = 0
        self.streams: list[int] = []

    def backend_version_string(self) -> str:
        return "9.10.2"

    def create_handle(self) -> int:
        self.handles += 1
        return self.handles

    def set_stream(self, *, handle: int, stream: int) -> None:
        assert handle == 1
        self.streams.append(stream)

    def pygraph(self, **settings: Any) -> Graph:
        return Graph(self, **settings)
