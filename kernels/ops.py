"""The op family of unit_fast, registered as ``torch.ops.unit_fast.*``.

``clamp_bound`` is registered as a composite (CompositeImplicitAutograd) operator. That one registration gives all that
a graph operator needs: autograd, fake tensors and every device come from the eager reference; ``torch.export`` keeps
the call whole; ``torch.compile`` sees through it, so that Inductor fuses the clamp into the loop around it. In eager
mode the dispatch costs 0.4 µs and the checks 3 µs (a ``torch.library.custom_op`` alone 11 µs; x86, torch 2.13).

``epilogue``, ``linear``, ``conv2d`` and ``max_pool2d`` are opaque to torch.compile: a kernel must be chosen by the real
shape of each call, not by the first one traced (pytorch#164124). They are made for inference. Where a gradient is
wanted they run the eager reference, which is differentiable to any order. On CUDA they run what ``dispatch`` chooses
for the shape; Triton is imported then, not with this module.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from unit_fast.kernels.checks import (
    check_conv2d,
    check_epilogue,
    check_linear,
    check_max_pool2d,
    check_per_sample,
)
from unit_fast.kernels.layout import KERNEL_DTYPES
from unit_fast.kernels.reference import (
    clamp_bound_ref,
    conv2d_ref,
    epilogue_ref,
    linear_ref,
    max_pool2d_ref,
    memory_format_of,
)

__all__ = ["clamp_bound", "clamp_bound_once", "conv2d", "epilogue", "linear", "max_pool2d"]
# The registrations live as long as this object. torch.library has no annotations.
_LIBRARY: Any = torch.library.Library("unit_fast", "DEF")  # type: ignore[no-untyped-call]


def _clamp_bound(x: Tensor, bound: Tensor) -> Tensor:
    check_per_sample("clamp_bound", "bound", bound, x, x.shape)
    return clamp_bound_ref(x, bound)


_LIBRARY.define(
    "clamp_bound(Tensor x, Tensor bound) -> Tensor", tags=(torch.Tag.pointwise, torch.Tag.pt2_compliant_tag)
)
_LIBRARY.impl("clamp_bound", _clamp_bound, "CompositeImplicitAutograd")


def clamp_bound(
    x: Tensor,  # (N, *S), floating
    bound: Tensor,  # broadcasts to (*S): () per tensor, (C, 1, 1) or (C,) per channel, (*S) per neuron
) -> Tensor:  # (N, *S), x.dtype
    """Limit activations from above: ``where(x > bound, bound, x)``, the bound broadcast against one sample.

    The bound is cast to ``x.dtype``; the result has the dtype, device and shape of ``x``, under autocast too. NaN stays
    NaN, ties and everything at or below the bound pass unchanged, so do batches of no samples. Differentiable in both
    arguments: dX = g where not x > bound, dBound = sum of g where x > bound over the batch and the broadcast
    dimensions, without atomics, hence deterministic.

    Raises:
        TypeError: ``x`` or ``bound`` is not of a floating-point dtype.
        ValueError: ``bound`` does not broadcast to one sample without enlarging it, or lies on another device.
    """
    result: Tensor = torch.ops.unit_fast.clamp_bound.default(x, bound)
    return result


def clamp_bound_once(
    x: Tensor,  # (N, *S), floating
    bound: Tensor,  # broadcasts to (*S)
) -> Tensor:  # (N, *S), x.dtype
    """``clamp_bound`` for fitting bounds: on CUDA by the Triton kernels, whose gradient can't be differentiated again.

    One pass forward, and one backward that writes dX and sums dBound in a fixed order, where autograd through the
    reference takes five and keeps a mask. What the kernels do not take (the CPU, float64) goes through ``clamp_bound``.

    Raises:
        As ``clamp_bound``.
    """
    if not _runs_kernels(x):
        return clamp_bound(x, bound)
    from unit_fast.kernels import backward

    return backward.clamp_bound(x, bound)


_TAIL = 'str act="identity", float[] act_args=[]) -> Tensor'
_CONV = "SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1, "
_OPERANDS = "Tensor? bias=None, Tensor? residual=None, Tensor? bound=None, "
_LIBRARY.define("epilogue(Tensor x, Tensor? scale=None, " + _OPERANDS + _TAIL, tags=torch.Tag.pt2_compliant_tag)
_LIBRARY.define("linear(Tensor x, Tensor weight, " + _OPERANDS + _TAIL, tags=torch.Tag.pt2_compliant_tag)
_LIBRARY.define("conv2d(Tensor x, Tensor weight, " + _OPERANDS + _CONV + _TAIL, tags=torch.Tag.pt2_compliant_tag)
_LIBRARY.define(
    "max_pool2d(Tensor x, Tensor? bias=None, Tensor? bound=None, SymInt[2] kernel_size=1, SymInt[2] stride=1, "
    "SymInt[2] padding=0, SymInt[2] dilation=1, bool ceil_mode=False, " + _TAIL,
    tags=torch.Tag.pt2_compliant_tag,
)


# The dispatcher passes the arguments of a schema in its order, and leaves out trailing ones that have their defaults.
def _epilogue(*args: Any) -> Tensor:
    check_epilogue(*args)
    return epilogue_ref(*args)


def _linear(*args: Any) -> Tensor:
    check_linear(*args)
    return linear_ref(*args)


def _conv2d(*args: Any) -> Tensor:
    check_conv2d(*args)
    return conv2d_ref(*args)


def _max_pool2d(*args: Any) -> Tensor:
    check_max_pool2d(*args)
    return max_pool2d_ref(*args)


def _epilogue_fake(x: Tensor, *args: Any) -> Tensor:
    check_epilogue(x, *args)
    return torch.empty_like(x, memory_format=memory_format_of(x))


def _linear_fake(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty(check_linear(x, *args))


def _conv2d_fake(x: Tensor, weight: Tensor, *args: Any) -> Tensor:
    shape = check_conv2d(x, weight, *args)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x, weight))


def _max_pool2d_fake(x: Tensor, *args: Any) -> Tensor:
    shape = check_max_pool2d(x, *args)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))


def _differentiable(op: Any, reference: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The Autograd kernel of ``op``: ``reference`` where a gradient is wanted, else whatever the device registered."""

    def kernel(*args: Any) -> Tensor:
        if torch.is_grad_enabled() and any(a.requires_grad for a in args if isinstance(a, Tensor)):
            return reference(*args)
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = op(*args)
        return result

    return kernel


def _autocast(op: Any, device_type: str) -> Callable[..., Tensor]:
    """The autocast kernel of ``op``: x, weight and residual take autocast's dtype, as torch's conv2d and linear do."""

    def kernel(x: Tensor, weight: Tensor, bias: Any = None, residual: Any = None, *args: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device_type)
        if residual is not None:
            residual = residual.to(dtype)
        with torch.autocast(device_type, enabled=False):
            result: Tensor = op(x.to(dtype), weight.to(dtype), bias, residual, *args)
        return result

    return kernel


def _runs_kernels(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in KERNEL_DTYPES and _triton_is_there()


@functools.cache
def _triton_is_there() -> bool:
    """Whether Triton can be imported; says so once where it can't."""
    if importlib.util.find_spec("triton") is not None:
        return True
    warnings.warn(
        "unit_fast.kernels: Triton is not installed, so operators on CUDA run their eager references, several passes "
        "over memory each; install triton",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def _on_cuda(name: str, reference: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The CUDA kernel of an operator: what ``dispatch`` chooses, ``reference`` for what no kernel takes."""

    def kernel(x: Tensor, *args: Any) -> Tensor:
        if x.numel() == 0 or not _runs_kernels(x):
            return reference(x, *args)
        from unit_fast.kernels import dispatch

        result: Tensor = getattr(dispatch, f"run_{name}")(x, *args)
        return result

    return kernel


def _register(name: str, reference: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    op = getattr(torch.ops.unit_fast, name).default
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, _on_cuda(name, reference), "CUDA")
    _LIBRARY.impl(name, _differentiable(op, reference), "Autograd")
    _LIBRARY.impl(name, fake, "Meta")
    if name in ("linear", "conv2d"):  # the others keep the dtype they are given
        for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            _LIBRARY.impl(name, _autocast(op, device_type), key)


_register("epilogue", _epilogue, _epilogue_fake)
_register("linear", _linear, _linear_fake)
_register("conv2d", _conv2d, _conv2d_fake)
_register("max_pool2d", _max_pool2d, _max_pool2d_fake)

UNWRITTEN: dict[str, Callable[..., Tensor]] = {
    "epilogue": _epilogue_fake,
    "linear": _linear_fake,
    "conv2d": _conv2d_fake,
    "max_pool2d": _max_pool2d_fake,
}
"""New memory for the output of a call, in its place, shape and layout; for the arguments of each operator."""


def epilogue(
    x: Tensor,  # (N, *S), floating
    scale: Tensor | None = None,  # broadcasts to (*S), as the bound of clamp_bound does
    bias: Tensor | None = None,  # broadcasts to (*S)
    residual: Tensor | None = None,  # (N, *S), x.dtype
    bound: Tensor | None = None,  # broadcasts to (*S)
    act: str = "identity",
    act_args: Sequence[float] = (),
) -> Tensor:  # (N, *S), x.dtype
    """``min(act(x·scale + bias + residual), bound)`` in one pass over memory, rounded to ``x.dtype`` once.

    ``act`` is one of ``reference.ACTIVATION_DEFAULTS``; ``act_args`` are its arguments in torch's order (hardtanh: min
    and max; leaky_relu: the slope; elu: alpha), or empty for torch's defaults. scale and bias may have any floating
    dtype; half-precision x is computed in float32. NaN stays NaN. A channels_last x gives a channels_last result.

    Raises:
        TypeError: an operand is not of a floating-point dtype, or the residual not of ``x``'s.
        ValueError: shapes or devices do not fit, or ``act`` or ``act_args`` is unknown.
    """
    result: Tensor = torch.ops.unit_fast.epilogue.default(x, scale, bias, residual, bound, act, list(act_args))
    return result


def linear(
    x: Tensor,  # (B, ..., K)
    weight: Tensor,  # (N, K), x.dtype
    bias: Tensor | None = None,  # (N,)
    residual: Tensor | None = None,  # (B, ..., N), x.dtype
    bound: Tensor | None = None,  # broadcasts to (..., N), one sample
    act: str = "identity",
    act_args: Sequence[float] = (),
) -> Tensor:  # (B, ..., N), x.dtype, contiguous
    """``epilogue(x @ weightᵀ, bias, residual, act, bound)`` on the float32 accumulator; see ``epilogue``.

    Under autocast x, weight and residual are cast as torch.nn.functional.linear casts them.

    Raises:
        TypeError: dtypes are not floating, or differ between x, weight and residual.
        ValueError: shapes or devices do not fit, or ``act`` or ``act_args`` is unknown.
    """
    result: Tensor = torch.ops.unit_fast.linear.default(x, weight, bias, residual, bound, act, list(act_args))
    return result


def conv2d(
    x: Tensor,  # (B, C, H, W)
    weight: Tensor,  # (N, C / groups, R, S), x.dtype
    bias: Tensor | None = None,  # (N,)
    residual: Tensor | None = None,  # (B, N, P, Q), x.dtype
    bound: Tensor | None = None,  # broadcasts to (N, P, Q)
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    act: str = "identity",
    act_args: Sequence[float] = (),
) -> Tensor:  # (B, N, P, Q), x.dtype
    """``epilogue(conv2d(x, weight), bias, residual, act, bound)`` on the float32 accumulator; see ``epilogue``.

    The kernels work on NHWC memory: give x and weight as ``torch.channels_last`` and the bound of shape (N, P, Q) with
    its memory in P, Q, N order (``layout.pack_bound``), and nothing is copied. The result is channels_last when x or
    weight is. Under autocast x, weight and residual are cast as torch.nn.functional.conv2d casts them.

    Raises:
        TypeError: dtypes are not floating, or differ between x, weight and residual.
        ValueError: shapes, settings or devices do not fit, or ``act`` or ``act_args`` is unknown.
    """
    result: Tensor = torch.ops.unit_fast.conv2d.default(
        x, weight, bias, residual, bound, stride, padding, dilation, groups, act, list(act_args)
    )
    return result


def max_pool2d(
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
    """``max_pool2d(epilogue(x, bias, act, bound))``, the epilogue applied to what is read; see ``epilogue``.

    The window is that of torch.nn.functional.max_pool2d. The kernels work on NHWC memory, as those of ``conv2d`` do.

    Raises:
        TypeError: dtypes are not floating.
        ValueError: shapes, settings or devices do not fit, or ``act`` or ``act_args`` is unknown.
    """
    result: Tensor = torch.ops.unit_fast.max_pool2d.default(
        x, bias, bound, kernel_size, stride, padding, dilation, ceil_mode, act, list(act_args)
    )
    return result
