"""What the value sweep computes: every shipped configuration on shapes that find its edges."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from unit_fast.kernels.configs import (
    CONV2D,
    LINEAR,
    STEM,
    DepthwiseConfig,
    MatmulConfig,
    PointwiseConfig,
    depthwise_configs,
    pointwise_config,
)
from unit_fast.kernels.reference import ACTIVATION_DEFAULTS

Dtype = Literal["fp16", "bf16", "fp32", "tf32"]
BoundKind = Literal["none", "tensor", "channel", "neuron"]
Fault = Literal["", "short sum", "crash"]
ITEM_SIZE = {"fp16": 2, "bf16": 2, "fp32": 4, "tf32": 4}


@dataclass(frozen=True)
class ValueCase:
    """One comparison with the reference.

    Attributes:
        operator: whose kernel.
        dtype: "fp32" multiplies as torch does by default, "tf32" as it may be told to.
        config: None where the launcher has no choice.
        x: shape of the input.
        weight: shape of the weight, where there is one; of a pooling (1, 1, R, S).
        stride, padding, dilation, groups: of a convolution.
        bias, residual, counts: whether there is one; counts need a bound.
        bound: its kind.
        act: activation.
        nchw: whether a map lies in memory as C, H, W; it does as H, W, C otherwise.
        fault: what is done wrong on purpose, in a control: "short sum" leaves the end of K out, as a loop that stops
            early would; "crash" ends the process, as a fault on the device would.
    """

    operator: Literal["linear", "conv2d", "max_pool2d", "epilogue", "clamp_bound_backward"]
    dtype: Dtype
    config: MatmulConfig | DepthwiseConfig | PointwiseConfig | None
    x: tuple[int, ...]
    weight: tuple[int, ...] = ()
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True
    residual: bool = False
    counts: bool = False
    bound: BoundKind = "neuron"
    act: str = "relu"
    nchw: bool = False
    fault: Fault = ""

    @property
    def name(self) -> str:
        """One line that tells it from all others."""
        config = self.config if isinstance(self.config, MatmulConfig | DepthwiseConfig) else _tile(self.config)
        shape = "x".join(map(str, self.x)) + (" by " + "x".join(map(str, self.weight)) if self.weight else "")
        geometry = ""
        if self.operator in ("conv2d", "max_pool2d"):
            geometry = f" stride {self.stride} padding {self.padding} dilation {self.dilation} groups {self.groups}"
        flags = (name for name in ("bias", "residual", "counts", "nchw") if getattr(self, name))
        tail = [self.act, f"bound {self.bound}", *flags]
        control = f" [control: {self.fault}]" if self.fault else ""
        return f"{self.operator} {config} {self.dtype} {shape}{geometry} {', '.join(tail)}{control}"

    def size(self) -> int:
        """Multiply-adds, roughly: what the case costs in the interpreter."""
        return math.prod(self.x) * (math.prod(self.weight) // math.prod(self.stride) if self.weight else 1)


def _tile(config: PointwiseConfig | None) -> str:
    return "chosen" if config is None else f"{config.block_r}x{config.block_s}x{config.loops} w{config.num_warps}"


# What varies beside the shapes; cases walk through it, so that neighbours differ in everything.
TAILS: tuple[dict[str, object], ...] = (
    {"bound": "neuron", "residual": True, "act": "relu"},
    {"bound": "channel", "act": "gelu"},
    {"bound": "none", "residual": True, "act": "identity"},
    {"bound": "tensor", "act": "relu6", "bias": False},
    {"bound": "neuron", "residual": True, "act": "relu", "counts": True},
    {"bound": "channel", "residual": True, "act": "silu", "counts": True},
)


KINDS_POOLED: tuple[tuple[BoundKind, bool, str], ...] = (
    ("none", False, "identity"),
    ("neuron", True, "relu"),
    ("channel", True, "gelu"),
)


def value_cases(architecture: int, dtypes: tuple[Dtype, ...]) -> list[ValueCase]:
    """Every shipped configuration of an architecture × dtype × shapes, each configuration's first shape first."""
    rounds: list[list[ValueCase]] = []
    for dtype in dtypes:
        for place, group in enumerate(_groups(architecture, dtype)):
            for turn, case in enumerate(group):
                while len(rounds) <= turn:
                    rounds.append([])
                tail = TAILS[(place + turn) % len(TAILS)] if case.operator in ("linear", "conv2d") else {}
                rounds[turn].append(replace(case, **tail))  # type: ignore[arg-type]
    return [case for group in rounds for case in group]


def controls() -> list[ValueCase]:
    """Two cases that must come out wrong, or the sweep sees nothing: a short sum, and a process that dies."""
    wrong = ValueCase("linear", "fp16", LINEAR[80][-1], (33, 64), (40, 64), fault="short sum")
    return [wrong, replace(wrong, fault="crash")]


def _groups(architecture: int, dtype: Dtype) -> Iterator[list[ValueCase]]:
    """For each configuration its cases, the most telling first."""
    usable = [c for c in LINEAR[architecture] if c.float32 or ITEM_SIZE[dtype] == 2]
    yield from (list(_linear(config, dtype)) for config in usable)
    usable = [c for c in CONV2D[architecture] if c.float32 or ITEM_SIZE[dtype] == 2]
    yield from (list(_conv2d(config, dtype)) for config in usable)
    usable = [c for c in STEM[architecture] if c.float32 or ITEM_SIZE[dtype] == 2]
    yield from (list(_stem(config, dtype)) for config in usable)
    yield from (_depthwise(place, dtype) for place in range(len(depthwise_configs(64, 56))))
    if dtype == "tf32":  # no products below
        return
    yield [ValueCase("conv2d", dtype, None, (2, 8, 9, 9), (16, 2, 3, 3), padding=(1, 1), groups=4)]
    yield list(_pointwise(dtype))
    yield [
        ValueCase("max_pool2d", dtype, None, x, (1, 1, *kernel), stride, padding, bound=bound, bias=bias, act=act)
        for x, kernel, stride, padding in (
            ((3, 64, 29, 31), (3, 3), (2, 2), (1, 1)),
            ((2, 70, 56, 56), (2, 2), (2, 2), (0, 0)),
            ((2, 24, 9, 7), (5, 3), (1, 2), (2, 1)),
            ((131, 64, 56, 55), (3, 3), (2, 2), (1, 1)),  # several images a program, and one left over
        )
        for bound, bias, act in KINDS_POOLED
    ]
    yield [
        ValueCase("clamp_bound_backward", dtype, None, x, bound=bound, bias=False, act="identity")
        for x in ((64, 24, 14, 14), (3000, 5), (7, 1030), (5, 3, 7, 5))
        for bound in ("neuron", "channel", "tensor")
    ]


def _linear(config: MatmulConfig, dtype: Dtype) -> Iterator[ValueCase]:
    m, n, k = config.block_m, config.block_n, config.k_of(ITEM_SIZE[dtype])
    if config.loader == "stream":
        for rows, inner, outputs in (
            (2 * m + 5, k - 8, n + 8),
            (8 * m, k, 2 * n),
            (60_013, k // 2 + 8, 264),  # many tiles a program
            (3, k, 1000),
            (37, 33, 10),
        ):
            yield ValueCase("linear", dtype, config, (rows, inner), (outputs, inner))
        yield ValueCase("conv2d", dtype, config, (3, k, 15, 14), (n, k, 1, 1))
        return
    for rows, inner, outputs in (
        (2 * m + 5, 2 * k + 8, n + 8),  # ragged every way
        (4 * m, 4 * k, 2 * n),  # whole tiles
        (20_011, 5 * k, 264),  # several tiles a program
        (3, 8 * k, 1000),  # few rows
    ):
        yield ValueCase("linear", dtype, config, (rows, inner), (outputs, inner))
    if config.loader == "pointer":
        yield ValueCase("linear", dtype, config, (37, 33), (10, 33))  # nothing a multiple of anything
        yield ValueCase("conv2d", dtype, config, (3, 2 * k, 15, 14), (n, 2 * k, 1, 1), stride=(2, 2))
    else:
        yield ValueCase("conv2d", dtype, config, (3, 2 * k, 15, 14), (n, 2 * k, 1, 1))


def _conv2d(config: MatmulConfig, dtype: Dtype) -> Iterator[ValueCase]:
    n, k = config.block_n, config.k_of(ITEM_SIZE[dtype])
    same = (1, 1)
    yield ValueCase("conv2d", dtype, config, (3, 2 * k, 15, 17), (n + 8, 2 * k, 3, 3), padding=same)  # ragged maps
    yield ValueCase("conv2d", dtype, config, (32, k, 56, 56), (n, k, 3, 3), padding=same)  # many programs
    yield ValueCase("conv2d", dtype, config, (2, 4 * k, 7, 7), (2 * n, 4 * k, 3, 3), padding=same)  # a long sum
    yield ValueCase("conv2d", dtype, config, (2, k, 16, 16), (n, k, 3, 3), padding=(2, 2), dilation=(2, 2))
    if config.loader == "pointer":
        flat = 16 // ITEM_SIZE[dtype]  # channels of a pixel of 16 bytes
        yield ValueCase("conv2d", dtype, config, (2, flat, 37, 35), (n, flat, 7, 7), stride=(2, 2), padding=(3, 3))
        yield ValueCase("conv2d", dtype, config, (2, 40, 15, 14), (n + 8, 40, 3, 3), stride=(2, 2), padding=same)
        yield ValueCase("conv2d", dtype, config, (2, 37, 9, 8), (10, 37, 3, 3), padding=same)


def _stem(config: MatmulConfig, dtype: Dtype) -> Iterator[ValueCase]:
    n = config.block_n
    yield ValueCase("conv2d", dtype, config, (2, 3, 37, 35), (n + 8, 3, 7, 7), stride=(2, 2), padding=(3, 3))
    yield ValueCase("conv2d", dtype, config, (32, 3, 112, 112), (n, 3, 3, 3), padding=(1, 1))  # many programs
    yield ValueCase("conv2d", dtype, config, (3, 3, 64, 48), (2 * n, 3, 16, 16), stride=(16, 16))  # where they lie
    yield ValueCase("conv2d", dtype, config, (3, 1, 28, 30), (n, 1, 5, 3), padding=(4, 1), dilation=(2, 2), nchw=True)


def _depthwise(place: int, dtype: Dtype) -> list[ValueCase]:
    """The configuration at that place, on maps that end within a strip, and a filter that strides and dilates."""
    cases = []
    for c, size, kernel, stride, padding, dilation in (
        (96, (15, 14), (3, 3), (2, 2), (1, 1), (1, 1)),
        (70, (56, 55), (3, 3), (1, 1), (1, 1), (1, 1)),
        (24, (7, 6), (5, 5), (1, 1), (2, 2), (1, 1)),
        (960, (7, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
        (32, (11, 13), (3, 3), (1, 2), (2, 2), (2, 2)),
    ):
        config = depthwise_configs(c, 56)[place]
        x, weight = (2, c, *size), (c, 1, *kernel)
        cases.append(ValueCase("conv2d", dtype, config, x, weight, stride, padding, dilation, groups=c))
    return cases


def _pointwise(dtype: Dtype) -> Iterator[ValueCase]:
    shapes = ((64, 24, 14, 14), (3, 5, 7, 6), (9, 197, 768), (40, 1030), (1000, 10))
    kinds: tuple[BoundKind, ...] = ("neuron", "channel", "tensor", "none")
    for number, act in enumerate(ACTIVATION_DEFAULTS):
        x = shapes[number % len(shapes)]
        bound = kinds[number % len(kinds)]
        config = pointwise_config(x[0], math.prod(x[1:]))
        counted = bound != "none" and number % 3 == 0
        residual = number % 2 == 0
        nchw = x == (3, 5, 7, 6)
        yield ValueCase(
            "epilogue", dtype, config, x, residual=residual, counts=counted, bound=bound, act=act, nchw=nchw
        )
    for loops in (1, 4):
        yield ValueCase("epilogue", dtype, PointwiseConfig(1, 1024, loops), (30, 64, 8, 8), residual=True)
