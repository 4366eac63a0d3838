"""Who can compute a problem: the fused Triton kernel in each configuration worth timing, cuDNN's graph API where it is
installed, the vendor's library followed by one epilogue pass, and the eager reference.

Another way is one more function that returns ``Candidate``s, added in ``candidates_for``: verification, timing and
memory then come by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unit_fast.kernels.configs import (
    CONV2D,
    LINEAR,
    STEM,
    DepthwiseConfig,
    MatmulConfig,
    architecture,
    depthwise_configs,
    fitting,
)
from unit_fast.kernels.conv2d import conv2d
from unit_fast.kernels.dispatch import cudnn_graph
from unit_fast.kernels.dispatch.environment import Environment
from unit_fast.kernels.dispatch.problem import Operator, Problem
from unit_fast.kernels.layout import KERNEL_DTYPES
from unit_fast.kernels.linear import linear
from unit_fast.kernels.pointwise import epilogue
from unit_fast.kernels.pooling import MOST_TAPS, max_pool2d
from unit_fast.kernels.reference import conv2d_ref, epilogue_ref, linear_ref, max_pool2d_ref, memory_format_of
from unit_fast.kernels.stem import is_stem, span_of

Provider = Literal["triton", "cudnn", "library", "reference"]
WIDTH = 8
"""Triton configurations that are timed for a problem, the likeliest best first. Each costs 1 to 3 s of compilation."""

REFERENCES: dict[Operator, Callable[..., Tensor]] = {
    "epilogue": epilogue_ref,
    "linear": linear_ref,
    "conv2d": conv2d_ref,
    "max_pool2d": max_pool2d_ref,
}


@dataclass(frozen=True)
class Candidate:
    """One way to compute a problem.

    Attributes:
        name: the same in every process, e.g. "triton tma 128x128x64 w8 s4".
        provider: whose work it is: our kernels', cuDNN's in one fused graph, a library's with a pass of ours, torch's.
        call: takes the operator's arguments, and ``counts=``.
    """

    name: str
    provider: Provider
    call: Callable[..., Tensor]


def candidates_for(problem: Problem, environment: Environment, width: int = WIDTH) -> tuple[Candidate, ...]:
    """Every candidate: Triton's (at most ``width``), cuDNN's graph, the library's, and last the reference."""
    reference = Candidate("reference", "reference", partial(_counted_reference, problem.operator))
    if problem.empty or not environment.triton_runs or problem.dtype not in KERNEL_DTYPES:
        return (reference,)
    if problem.operator == "epilogue":
        return Candidate("triton", "triton", epilogue), reference
    if problem.operator == "max_pool2d":
        fits = math.prod(problem.option("kernel_size")) <= MOST_TAPS and problem.x.layout == "channels_last"
        fused = [Candidate("triton", "triton", max_pool2d)] if fits else []
        return *fused, Candidate("epilogue + torch", "library", _epilogue_then_max_pool2d), reference
    if problem.operator == "linear":
        fused = _matmul(problem, environment, linear, rows=math.prod(problem.out_shape[:-1]), strided=False)
        library = Candidate("cublas + epilogue", "library", _linear_then_epilogue)
    else:
        fused = _conv2d(problem, environment)
        library = Candidate("cudnn + epilogue", "library", _then_epilogue)
    return *fused[:width], *_cudnn_graph(problem, environment, library), library, reference


def _cudnn_graph(problem: Problem, environment: Environment, library: Candidate) -> list[Candidate]:
    """Named with its version, which ``Environment`` does not tell: another's measurement is none of this one's."""
    graphs = cudnn_graph.installed() if environment.device != "cpu" else None
    if graphs is None:
        return []
    fused = graphs.linear if problem.operator == "linear" else graphs.conv2d
    return [Candidate(f"cudnn graph {graphs.version}", "cudnn", partial(_counted_graph, fused, library.call))]


def _counted_graph(
    fused: Callable[..., Tensor], library: Callable[..., Tensor], *args: Any, counts: Tensor | None = None
) -> Tensor:
    """cuDNN's plan; where saturation is counted the library's way, whose pass counts."""
    return fused(*args) if counts is None else library(*args, counts=counts)


def _named(config: MatmulConfig | DepthwiseConfig, launcher: Callable[..., Tensor]) -> Candidate:
    return Candidate(f"triton {config}", "triton", partial(launcher, config=config))


def _matmul(
    problem: Problem, environment: Environment, launcher: Callable[..., Tensor], rows: int, strided: bool
) -> list[Candidate]:
    weight = problem.spec("weight")
    assert weight is not None, "a product has a weight"
    n, k, itemsize = weight.shape[0], weight.shape[1], problem.dtype.itemsize
    tma = (
        environment.capability >= 90
        and not strided
        and k * itemsize % 16 == 0
        # A strided operand is copied first, and then lies as new memory does: aligned.
        and all(spec.aligned or spec.layout == "strided" for spec in (problem.x, weight))
    )
    table = LINEAR[architecture(environment.capability)]
    configs = fitting(table, rows, n, k, environment.programs, tma=tma, stream=not strided, itemsize=itemsize)
    return [_named(config, launcher) for config in configs]


def _conv2d(problem: Problem, environment: Environment) -> list[Candidate]:
    weight = problem.spec("weight")
    assert weight is not None, "a convolution has a weight"
    batch, n, p, q = problem.out_shape
    channels, groups = problem.x.shape[1], problem.option("groups")
    if groups > 1:
        depthwise = groups == channels == n
        return [_named(config, conv2d) for config in depthwise_configs(n, q)] if depthwise else []
    unstrided = problem.option("stride") == (1, 1)
    if weight.shape[2:] == (1, 1) and problem.option("padding") == (0, 0):
        return _matmul(problem, environment, conv2d, rows=batch * p * q, strided=not unstrided)
    itemsize = problem.dtype.itemsize
    if is_stem(channels, itemsize):
        k = weight.shape[2] * span_of(channels, weight.shape[3])
        table = STEM[architecture(environment.capability)]
        configs = fitting(table, batch * p * q, n, k, environment.programs, tma=False, itemsize=itemsize)
        return [_named(config, conv2d) for config in configs]
    # A map smaller than 7 fills little of the patch that a TMA tile is.
    tma = environment.capability >= 90 and unstrided and min(p, q) >= 7
    table = CONV2D[architecture(environment.capability)]
    k = math.prod(weight.shape[1:])
    configs = fitting(table, batch * p * q, n, k, environment.programs, tma=tma, itemsize=itemsize)
    usable = [c for c in configs if c.loader != "tma" or channels % c.k_of(itemsize) == 0]
    return [_named(config, conv2d) for config in usable]


def _then_epilogue(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    bound: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    act: str,
    act_args: Sequence[float],
    *,
    counts: Tensor | None = None,
) -> Tensor:
    """torch's convolution, cuDNN's on a GPU, then everything else in one pass."""
    y = F.conv2d(x, weight, None, tuple(stride), tuple(padding), tuple(dilation), groups)
    if all(operand is None for operand in (bias, residual, bound)) and act == "identity":
        return y
    column = None if bias is None else bias[:, None, None]
    y = y.contiguous(memory_format=memory_format_of(x, weight))
    return epilogue(y, None, column, residual, bound, act, act_args, counts=counts)


def _linear_then_epilogue(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    bound: Tensor | None,
    act: str,
    act_args: Sequence[float],
    *,
    counts: Tensor | None = None,
) -> Tensor:
    """torch's product, cuBLAS's on a GPU, then everything else in one pass."""
    return epilogue(F.linear(x, weight), None, bias, residual, bound, act, act_args, counts=counts)


def _epilogue_then_max_pool2d(
    x: Tensor,
    bias: Tensor | None,
    bound: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    act: str,
    act_args: Sequence[float],
    *,
    counts: Tensor | None = None,
) -> Tensor:
    """Everything before the pooling in one pass, then torch's own."""
    if bias is not None or bound is not None or act != "identity":
        column = None if bias is None else bias[:, None, None]
        x = epilogue(x, None, column, None, bound, act, act_args, counts=counts)
    return F.max_pool2d(x, tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), ceil_mode)


def _counted_reference(operator: Operator, *args: Any, counts: Tensor | None = None) -> Tensor:
    """The eager reference, with the count of saturation that the kernels' launchers offer."""
    reference = REFERENCES[operator]
    if counts is None:
        return reference(*args)
    bound = args[4]
    if bound is None:
        raise ValueError("unit_fast.kernels: saturation is counted against a bound, and none was given")
    y = reference(*args[:4], None, *args[5:])
    bound = bound.to(y.dtype)
    above = y > bound
    counts += above.sum(dim=tuple(range(1, y.dim())), dtype=torch.int32) if y.dim() > 1 else above.to(torch.int32)
    return torch.where(above, bound, y).contiguous(memory_format=memory_format_of(y))
