"""What is to be computed, but for the values: the operator, its shapes, dtypes, layouts and options.

Equal problems get the same candidate. ``Problem.key`` is the readable form under which choices are kept on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from unit_fast.kernels.checks import check_conv2d, check_epilogue, check_linear, check_max_pool2d
from unit_fast.kernels.launch import dot_precision
from unit_fast.kernels.reference import memory_format_of

Operator = Literal["epilogue", "linear", "conv2d", "max_pool2d"]
Layout = Literal["contiguous", "channels_last", "hwc", "strided"]

OPERANDS: dict[Operator, tuple[str, ...]] = {
    "epilogue": ("x", "scale", "bias", "residual", "bound"),
    "linear": ("x", "weight", "bias", "residual", "bound"),
    "conv2d": ("x", "weight", "bias", "residual", "bound"),
    "max_pool2d": ("x", "bias", "bound"),
}
"""The tensors of each operator, in the order of its schema."""

OPTIONS: dict[Operator, tuple[tuple[str, Any], ...]] = {
    "epilogue": (("act", "identity"), ("act_args", ())),
    "linear": (("act", "identity"), ("act_args", ())),
    "conv2d": (
        ("stride", (1, 1)),
        ("padding", (0, 0)),
        ("dilation", (1, 1)),
        ("groups", 1),
        ("act", "identity"),
        ("act_args", ()),
    ),
    "max_pool2d": (
        ("kernel_size", (1, 1)),
        ("stride", (1, 1)),
        ("padding", (0, 0)),
        ("dilation", (1, 1)),
        ("ceil_mode", False),
        ("act", "identity"),
        ("act_args", ()),
    ),
}
"""What follows the tensors, with the defaults of the schema."""

_CHECKS = {
    "epilogue": check_epilogue,
    "linear": check_linear,
    "conv2d": check_conv2d,
    "max_pool2d": check_max_pool2d,
}


def complete(operator: Operator, args: Sequence[Any]) -> tuple[Any, ...]:
    """All arguments of a call: the dispatcher of torch leaves out trailing ones that have their defaults."""
    tensors, options = len(OPERANDS[operator]), OPTIONS[operator]
    given = (
        *args,
        *(None,) * (tensors - len(args)),
        *(default for _, default in options[max(0, len(args) - tensors) :]),
    )
    return (*given[:tensors], *(tuple(o) if isinstance(o, list) else o for o in given[tensors:]))


@dataclass(frozen=True)
class Spec:
    """One tensor of a problem. ``aligned``: its first element lies at a multiple of 16 bytes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: Layout = "contiguous"
    aligned: bool = True

    @classmethod
    def of(cls, tensor: Tensor) -> Spec:
        """The spec of ``tensor``."""
        return cls(tuple(tensor.shape), tensor.dtype, _layout(tensor), tensor.data_ptr() % 16 == 0)

    def __str__(self) -> str:
        layout = "" if self.layout == "contiguous" else f"/{self.layout}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{'x'.join(map(str, self.shape))}:{dtype}{layout}{'' if self.aligned else '/unaligned'}"

    def empty(self) -> Tensor:
        """New memory on the CPU, laid out like this, that nothing was written to ("strided" is contiguous)."""
        if self.layout == "hwc":
            channels, height, width = self.shape
            return torch.empty((height, width, channels), dtype=self.dtype).permute(2, 0, 1)
        nhwc = self.layout == "channels_last"
        memory_format = torch.channels_last if nhwc else torch.contiguous_format
        return torch.empty(self.shape, dtype=self.dtype, memory_format=memory_format)

    def lay_out(self, values: Tensor) -> Tensor:
        """``values``, a new contiguous tensor of the shape, in this dtype and layout ("strided" stays contiguous)."""
        values = values.to(self.dtype)
        if self.layout == "channels_last":
            return values.contiguous(memory_format=torch.channels_last)
        if self.layout == "hwc":
            return values.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        return values


def _layout(tensor: Tensor) -> Layout:
    if tensor.dim() == 4 and memory_format_of(tensor) is torch.channels_last:
        return "channels_last"
    if tensor.is_contiguous():
        return "contiguous"
    if tensor.dim() == 3 and tensor.permute(1, 2, 0).is_contiguous():
        return "hwc"
    return "strided"


@dataclass(frozen=True)
class Problem:
    """See the module. ``tensors`` and ``options`` stand in the order of ``OPERANDS`` and ``OPTIONS``.

    ``precision`` is how float32 products are formed ("tf32", "tf32x3"), empty for other dtypes.
    """

    operator: Operator
    tensors: tuple[Spec | None, ...]
    options: tuple[Any, ...]
    out_shape: tuple[int, ...]
    precision: str = ""

    @classmethod
    def of(cls, operator: Operator, args: Sequence[Any]) -> Problem:
        """The problem that a call poses; ``args`` from ``complete``.

        Raises:
            TypeError, ValueError: the arguments do not fit (``kernels.checks``).
        """
        count = len(OPERANDS[operator])
        shape = _CHECKS[operator](*args)  # type: ignore[operator]
        x: Tensor = args[0]
        multiplies = "weight" in OPERANDS[operator] and x.dtype == torch.float32
        precision = dot_precision(x, convolution=operator == "conv2d") if multiplies else ""
        specs = tuple(None if t is None else Spec.of(t) for t in args[:count])
        return cls(operator, specs, tuple(args[count:]), tuple(shape), precision)

    def spec(self, name: str) -> Spec | None:
        """The operand called ``name``; None where there is none, or the operator takes none."""
        operands = OPERANDS[self.operator]
        return self.tensors[operands.index(name)] if name in operands else None

    def option(self, name: str) -> Any:
        """The option called ``name``."""
        return self.options[[option for option, _ in OPTIONS[self.operator]].index(name)]

    @property
    def x(self) -> Spec:
        """The first operand."""
        spec = self.tensors[0]
        assert spec is not None, "x is never left out"
        return spec

    @property
    def dtype(self) -> torch.dtype:
        """Of x and the output."""
        return self.x.dtype

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute, or a sum over nothing: no kernel is launched for those."""
        weight = self.spec("weight")
        return 0 in self.out_shape or 0 in self.x.shape or (weight is not None and 0 in weight.shape)

    @property
    def key(self) -> str:
        """One readable line, equal for equal problems only."""
        operands = zip(OPERANDS[self.operator], self.tensors, strict=True)
        options = zip(OPTIONS[self.operator], self.options, strict=True)
        parts = [
            self.operator,
            *(f"{name}={spec}" for name, spec in operands if spec is not None),
            *(f"{name}={_written(value)}" for (name, default), value in options if value != default),
            *([self.precision] if self.precision else []),
        ]
        return " ".join(parts)


def _written(value: Any) -> str:
    return ",".join(str(v) for v in value) if isinstance(value, tuple) else str(value)
