"""Eager truth of the op family: what every kernel, backend and exported file is compared with.

Everything here is plain differentiable torch. Half-precision inputs are computed in float32 from the accumulator on and
rounded once at the end, as the kernels do; float32 and float64 stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATION_DEFAULTS: dict[str, tuple[float, ...]] = {
    "identity": (),
    "relu": (),
    "relu6": (),
    "hardtanh": (-1.0, 1.0),
    "leaky_relu": (0.01,),
    "elu": (1.0,),
    "gelu": (),
    "gelu_tanh": (),
    "silu": (),
    "hardswish": (),
}
"""Every activation an epilogue can hold, with the default values of its arguments (torch's)."""


def clamp_bound_ref(
    x: Tensor,  # (N, *S), floating
    bound: Tensor,  # broadcasts to (*S)
) -> Tensor:  # (N, *S), x.dtype
    """``where(x > bound, bound, x)`` in ``x.dtype``.

    NaN in ``x`` stays NaN (``x > bound`` is false), as with ``torch.clamp``; a NaN bound bounds nothing. At a tie the
    gradient goes to ``x``. Differentiable: dX is the gradient where ``x <= bound`` or ``x`` is NaN, dBound is the sum
    of the rest over the batch and over the dimensions that ``bound`` was broadcast along.
    """
    if bound.dtype != x.dtype:
        bound = bound.to(x.dtype)
    return torch.where(x > bound, bound, x)


def activate_ref(
    v: Tensor,
    act: str,  # a key of ACTIVATION_DEFAULTS
    act_args: Sequence[float] = (),  # empty for torch's defaults
) -> Tensor:  # as v
    """The activation ``act`` as torch computes it; NaN stays NaN."""
    args = tuple(act_args) or ACTIVATION_DEFAULTS[act]
    match act:
        case "identity":
            return v
        case "relu":
            return F.relu(v)
        case "relu6":
            return F.hardtanh(v, 0.0, 6.0)
        case "hardtanh":
            return F.hardtanh(v, min_val=args[0], max_val=args[1])
        case "leaky_relu":
            return F.leaky_relu(v, negative_slope=args[0])
        case "elu":
            return F.elu(v, alpha=args[0])
        case "gelu":
            return F.gelu(v)
        case "gelu_tanh":
            return F.gelu(v, approximate="tanh")
        case "silu":
            return F.silu(v)
        case _:
            return F.hardswish(v)


def memory_format_of(*operands: Tensor) -> torch.memory_format:
    """The layout an operator's output takes: channels_last as soon as one operand clearly is, as in torch."""
    for operand in operands:
        channels_last = operand.dim() == 4 and operand.is_contiguous(memory_format=torch.channels_last)
        if channels_last and not operand.is_contiguous():
            return torch.channels_last
    return torch.contiguous_format


def epilogue_ref(
    x: Tensor,  # (N, *S), floating
    scale: Tensor | None = None,  # broadcasts to (*S)
    bias: Tensor | None = None,  # broadcasts to (*S)
    residual: Tensor | None = None,  # (N, *S)
    bound: Tensor | None = None,  # broadcasts to (*S)
    act: str = "identity",
    act_args: Sequence[float] = (),
) -> Tensor:  # (N, *S), x.dtype
    """``min(act(x·scale + bias + residual), bound)``, rounded to ``x.dtype`` once.

    The bound is cast to ``x.dtype`` first. Rounding is monotone, so clamping after it equals clamping before it.
    """
    v = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if scale is not None:
        v = v * scale.to(v.dtype)
    if bias is not None:
        v = v + bias.to(v.dtype)
    if residual is not None:
        v = v + residual.to(v.dtype)
    y = activate_ref(v, act, act_args).to(x.dtype)
    if bound is not None:
        y = clamp_bound_ref(y, bound)
    elif y is x:
        y = x.clone()  # an operator's output is never its input
    return y.contiguous(memory_format=memory_format_of(x))


def linear_ref(
    x: Tensor,  # (*B, K)
    weight: Tensor,  # (N, K)
    bias: Tensor | None = None,  # (N,)
    residual: Tensor | None = None,  # (*B, N)
    bound: Tensor | None = None,  # broadcasts to (*B[1:], N)
    act: str = "identity",
    act_args: Sequence[float] = (),
) -> Tensor:  # (*B, N), x.dtype
    """``epilogue(x @ weightᵀ, bias, residual, act, bound)``."""
    inner = bias if bias is not None and bias.dtype == x.dtype else None
    outer = None if inner is not None else bias
    return epilogue_ref(F.linear(x, weight, inner), None, outer, residual, bound, act, act_args)


def conv2d_ref(
    x: Tensor,  # (B, C, H, W)
    weight: Tensor,  # (N, C / groups, R, S)
    bias: Tensor | None = None,  # (N,)
    residual: Tensor | None = None,  # (B, N, P, Q)
    bound: Tensor | None = None,  # broadcasts to (N, P, Q)
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    act: str = "identity",
    act_args: Sequence[float] = (),
) -> Tensor:  # (B, N, P, Q), x.dtype
    """``epilogue(conv2d(x, weight), bias, residual, act, bound)``; its layout is that of ``memory_format_of``."""
    inner = bias if bias is not None and bias.dtype == x.dtype else None
    outer = None if inner is not None or bias is None else bias[:, None, None]
    y = F.conv2d(x, weight, inner, tuple(stride), tuple(padding), tuple(dilation), groups)
    y = epilogue_ref(y, None, outer, residual, bound, act, act_args)
    return y.contiguous(memory_format=memory_format_of(x, weight))


def max_pool2d_ref(
    x: Tensor,  # (B, C, H, W)
    bias: Tensor | None = None,  # (C,)
    bound: Tensor | None = None,  # broadcasts to (C, H, W)
    kernel_size: Sequence[int] = (1, 1),
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
    act: str = "identity",
    act_args: Sequence[float] = (),
) -> Tensor:  # (B, C, P, Q), x.dtype
    """``max_pool2d(epilogue(x, bias, act, bound))``; its layout is that of ``memory_format_of``."""
    column = None if bias is None else bias[:, None, None]
    y = epilogue_ref(x, None, column, None, bound, act, act_args)
    y = F.max_pool2d(y, tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), ceil_mode)
    return y.contiguous(memory_format=memory_format_of(x))
