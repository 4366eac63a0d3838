"""What the operators accept: one check an argument, used by the fake kernels and by every implementation alike."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from unit_fast.kernels.reference import ACTIVATION_DEFAULTS


def _check_activation(op: str, act: str, act_args: Sequence[float]) -> None:
    """Raise ValueError unless ``act`` is known and ``act_args`` is empty or of the right length."""
    if act not in ACTIVATION_DEFAULTS:
        known = ", ".join(ACTIVATION_DEFAULTS)
        raise ValueError(f"unit_fast::{op}: unknown activation {act!r}; expected one of {known}")
    count = len(ACTIVATION_DEFAULTS[act])
    if act_args and len(act_args) != count:
        raise ValueError(
            f"unit_fast::{op}: {act} takes {count} arguments (or none, for torch's defaults), got {list(act_args)}"
        )


def _check_operand(op: str, name: str, operand: Tensor, x: Tensor) -> None:
    """Raise unless ``operand`` is a floating tensor on the device of ``x``."""
    if not (x.is_floating_point() and operand.is_floating_point()):
        raise TypeError(
            f"unit_fast::{op}: x and {name} must be floating-point tensors, got {x.dtype} and {operand.dtype}; "
            "convert them first"
        )
    if x.device != operand.device:
        raise ValueError(
            f"unit_fast::{op}: x is on {x.device} and {name} on {operand.device}; move it with {name}.to(x.device)"
        )


def check_per_sample(op: str, name: str, operand: Tensor, x: Tensor, shape: Sequence[int]) -> None:
    """Raise unless ``operand`` is a floating tensor on ``x``'s device that broadcasts to one sample of ``shape``.

    ``shape`` is that of the batch; broadcasting must not enlarge a sample.
    """
    _check_operand(op, name, operand, x)
    sample = shape[1:]
    if len(shape) > 0 and operand.shape == sample:
        return
    if (
        len(shape) == 0
        or operand.dim() > len(sample)
        or any(b != s and b != 1 for b, s in zip(reversed(operand.shape), reversed(sample), strict=False))
    ):
        raise ValueError(
            f"unit_fast::{op}: a {name} of shape {tuple(operand.shape)} does not broadcast to one sample, whose shape "
            f"is {tuple(sample)} (the batch is {tuple(shape)}, samples first); expected () for a {name} per tensor, "
            "(C, 1, 1) or (C,) per channel, or the sample's own shape per neuron"
        )


def _check_same_dtype(op: str, name: str, operand: Tensor, x: Tensor) -> None:
    """Raise unless ``operand`` lies on ``x``'s device and has its dtype."""
    _check_operand(op, name, operand, x)
    if operand.dtype != x.dtype:
        raise TypeError(
            f"unit_fast::{op}: {name} is {operand.dtype} and x {x.dtype}; convert one of them, or use torch.autocast"
        )


def _check_residual(op: str, residual: Tensor, x: Tensor, shape: Sequence[int]) -> None:
    """Raise unless ``residual`` has exactly the output's shape, and ``x``'s dtype and device."""
    _check_same_dtype(op, "residual", residual, x)
    if tuple(residual.shape) != tuple(shape):
        raise ValueError(
            f"unit_fast::{op}: the residual is {tuple(residual.shape)}, expected the output's shape {tuple(shape)}"
        )


def _check_bias(op: str, bias: Tensor, x: Tensor, channels: int) -> None:
    """Raise unless ``bias`` holds one floating value an output channel."""
    _check_operand(op, "bias", bias, x)
    if bias.dim() != 1 or bias.shape[0] != channels:
        raise ValueError(
            f"unit_fast::{op}: the bias is {tuple(bias.shape)}, expected ({channels},), as many as outputs"
        )


def _check_tail(
    op: str,
    x: Tensor,
    shape: Sequence[int],
    channels: int,
    bias: Tensor | None,
    residual: Tensor | None,
    bound: Tensor | None,
    act: str,
    act_args: Sequence[float],
) -> None:
    if bias is not None:
        _check_bias(op, bias, x, channels)
    if residual is not None:
        _check_residual(op, residual, x, shape)
    if bound is not None:
        check_per_sample(op, "bound", bound, x, shape)
    _check_activation(op, act, act_args)


def check_epilogue(
    x: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    bound: Tensor | None = None,
    act: str = "identity",
    act_args: Sequence[float] = (),
) -> tuple[int, ...]:
    """The output shape of ``epilogue``; raises TypeError or ValueError on arguments that do not fit."""
    _check_operand("epilogue", "x", x, x)
    for name, operand in (("scale", scale), ("bias", bias)):
        if operand is not None:
            check_per_sample("epilogue", name, operand, x, x.shape)
    _check_tail("epilogue", x, x.shape, 0, None, residual, bound, act, act_args)
    return tuple(x.shape)


def check_linear(
    x: Tensor,  # (B, ..., K)
    weight: Tensor,  # (N, K)
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    bound: Tensor | None = None,
    act: str = "identity",
    act_args: Sequence[float] = (),
) -> tuple[int, ...]:
    """The output shape (B, ..., N) of ``linear``; raises TypeError or ValueError on arguments that do not fit."""
    _check_same_dtype("linear", "weight", weight, x)
    if weight.dim() != 2 or x.dim() < 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"unit_fast::linear: x is {tuple(x.shape)} and weight {tuple(weight.shape)}; expected (batch, ..., K) and "
            "(N, K) with the same K"
        )
    shape = (*x.shape[:-1], weight.shape[0])
    _check_tail("linear", x, shape, weight.shape[0], bias, residual, bound, act, act_args)
    return shape


def check_conv2d(
    x: Tensor,  # (B, C, H, W)
    weight: Tensor,  # (N, C / groups, R, S)
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    bound: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    act: str = "identity",
    act_args: Sequence[float] = (),
) -> tuple[int, ...]:
    """The output shape (B, N, P, Q) of ``conv2d``; raises TypeError or ValueError on arguments that do not fit."""
    _check_same_dtype("conv2d", "weight", weight, x)
    if x.dim() != 4 or weight.dim() != 4:
        raise ValueError(
            f"unit_fast::conv2d: x is {tuple(x.shape)} and weight {tuple(weight.shape)}; expected (B, C, H, W) and "
            "(N, C / groups, R, S)"
        )
    for name, pair, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(pair) != 2 or min(pair) < least:
            raise ValueError(f"unit_fast::conv2d: {name} is {tuple(pair)}; expected two integers of at least {least}")
    channels, outputs = x.shape[1], weight.shape[0]
    if groups < 1 or channels != weight.shape[1] * groups or outputs % groups:
        raise ValueError(
            f"unit_fast::conv2d: {channels} channels in, {outputs} out, {groups} groups and a weight for "
            f"{weight.shape[1]} channels a group do not fit; expected C = {weight.shape[1]}·groups and N a multiple of "
            "groups"
        )
    p, q = (conv_size(x.shape[2 + i], weight.shape[2 + i], stride[i], padding[i], dilation[i]) for i in (0, 1))
    if p < 1 or q < 1:
        raise ValueError(
            f"unit_fast::conv2d: a kernel of {tuple(weight.shape[2:])} with dilation {tuple(dilation)} does not fit a "
            f"map of {tuple(x.shape[2:])} padded by {tuple(padding)}"
        )
    shape = (x.shape[0], outputs, p, q)
    _check_tail("conv2d", x, shape, outputs, bias, residual, bound, act, act_args)
    return shape


def conv_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """How many positions a convolution has along one axis."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def check_max_pool2d(
    x: Tensor,  # (B, C, H, W)
    bias: Tensor | None = None,
    bound: Tensor | None = None,
    kernel_size: Sequence[int] = (1, 1),
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
    act: str = "identity",
    act_args: Sequence[float] = (),
) -> tuple[int, ...]:
    """The output shape (B, C, P, Q) of ``max_pool2d``; raises TypeError or ValueError on arguments that do not fit."""
    _check_operand("max_pool2d", "x", x, x)
    pairs = (kernel_size, stride, padding, dilation)
    if x.dim() != 4 or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"unit_fast::max_pool2d: x is {tuple(x.shape)} and kernel_size, stride, padding and dilation are "
            f"{', '.join(str(tuple(pair)) for pair in pairs)}; expected (B, C, H, W) and pairs"
        )
    p, q = (_pooled_size(x.shape[2 + i], kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode) for i in (0, 1))
    if p < 1 or q < 1:
        raise ValueError(
            f"unit_fast::max_pool2d: a window of {tuple(kernel_size)} with dilation {tuple(dilation)} does not fit a "
            f"map of {tuple(x.shape[2:])} padded by {tuple(padding)}"
        )
    _check_tail("max_pool2d", x, x.shape, x.shape[1], bias, None, bound, act, act_args)
    return (x.shape[0], x.shape[1], p, q)


def _pooled_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """As torch has it: rounded up, a window may reach past the end, but must begin in the map or its left padding."""
    if not ceil_mode:
        return conv_size(size, kernel, stride, padding, dilation)
    found = conv_size(size + stride - 1, kernel, stride, padding, dilation)
    return found - 1 if (found - 1) * stride >= size + padding else found
