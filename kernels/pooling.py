"""Max pooling over NHWC, with the epilogue of what comes before it on every value that it reads.

torch's own kernel also writes the indices that a gradient needs, eight bytes an output; this one does not. A program
takes a tile of output positions × channels and keeps the largest of R·S shifted reads. Bounds per neuron it reads once
for several images. Where the bound is alike for all of a window, the largest value is found first and finished once.
"""
# A kernel's arguments are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, var-annotated"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from unit_fast.kernels.checks import check_max_pool2d
from unit_fast.kernels.configs import TILE, activation_constants, next_power_of_two
from unit_fast.kernels.epilogue import finish
from unit_fast.kernels.launch import on_device_of, vector_multiple
from unit_fast.kernels.layout import Operand, check_kernel_operands, check_rows, per_sample

MOST_TAPS = 25
"""Reads an output that are written out; larger windows are torch's."""
KEPT_TAPS = 9
"""Whose bounds a thread has registers for."""
MOST_IMAGES = 8
ENOUGH_PROGRAMS = 2048
"""Of which a GPU runs a few a multiprocessor at once: below, images are better spread than taken together."""


@triton.jit
def _tap(
    h,  # (BLOCK_M,) where the tap of each output lies
    w,
    row_ok,
    cols,  # (BLOCK_C,)
    C,
    H,
    W,
):
    """Offsets of a tap in its image, and which of them lie inside: (BLOCK_M, BLOCK_C)."""
    inside = row_ok & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    within = (tl.where(inside, h * W + w, 0) * C)[:, None] + cols[None, :]
    return within, inside[:, None] & (cols < C)[None, :]


@triton.jit
def _max_pool2d_kernel(
    x_ptr,  # (B, H, W, C)
    out_ptr,  # (B, P·Q, C)
    bias_ptr,  # (C,) or None
    bound_ptr,  # (), (C,) or (H, W, C), by BOUND; None without
    B,
    C,
    H,
    W,
    out_rows,  # P·Q
    Q,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    MULTIPLE_C: tl.constexpr,  # C is a multiple of this, up to the elements of 16 bytes
    BOUND: tl.constexpr,  # "none" | "tensor" | "channel" | "neuron"
    ACT: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    LAST: tl.constexpr,  # the epilogue keeps order and is one for all taps: it is left for the largest of them
    IMAGES: tl.constexpr,  # a program
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    C = C // MULTIPLE_C * MULTIPLE_C
    col_blocks, row_blocks = tl.cdiv(C, BLOCK_C), tl.cdiv(out_rows, BLOCK_M)
    cols = (tl.program_id(0) % col_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    rows = (tl.program_id(0) // col_blocks % row_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.program_id(0) // (col_blocks * row_blocks) * IMAGES
    row_ok = rows < out_rows
    h_start, w_start = rows // Q * STRIDE_H - PAD_H, rows % Q * STRIDE_W - PAD_W
    bias = None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + cols, mask=cols < C, other=0.0)[None, :]
    bound = None
    if BOUND == "tensor":
        bound = tl.load(bound_ptr)
    elif BOUND == "channel":
        bound = tl.load(bound_ptr + cols, mask=cols < C, other=0.0)[None, :]
    KEPT: tl.constexpr = BOUND == "neuron" and IMAGES > 1
    bounds = ()
    if KEPT:  # in registers, for all images
        for tap in tl.static_range(R * S):
            within, ok = _tap(
                h_start + tap // S * DILATION_H, w_start + tap % S * DILATION_W, row_ok, cols, C, H, W
            )  # fmt: skip
            bounds = bounds + (tl.load(bound_ptr + within, mask=ok, other=float("-inf")),)  # noqa: RUF005 - what Triton takes
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    x_image, out = x_ptr + first.to(tl.int64) * (H * W * C), out_ptr + first.to(tl.int64) * (out_rows * C)
    for _ in range(first, tl.minimum(first + IMAGES, B)):
        largest = tl.full((BLOCK_M, BLOCK_C), float("-inf"), DTYPE if LAST else tl.float32)
        some = tl.zeros((BLOCK_M, BLOCK_C), tl.int1)
        for tap in tl.static_range(R * S):
            within, ok = _tap(
                h_start + tap // S * DILATION_H, w_start + tap % S * DILATION_W, row_ok, cols, C, H, W
            )  # fmt: skip
            if LAST:
                v = tl.load(x_image + within, mask=ok, other=float("-inf"))
            else:
                v = tl.load(x_image + within, mask=ok, other=0.0).to(tl.float32)
                if BOUND == "neuron":  # which is -inf where nothing is read
                    if KEPT:
                        limit = bounds[tap]
                    else:
                        limit = tl.load(bound_ptr + within, mask=ok, other=float("-inf"))
                    v = finish(v, None, bias, None, limit, ACT, ALPHA, BETA)
                else:
                    v = tl.where(ok, finish(v, None, bias, None, bound, ACT, ALPHA, BETA), float("-inf"))
            largest = tl.maximum(largest, v, propagate_nan=tl.PropagateNan.ALL)  # as torch has it
            some = some | ok
        if LAST:
            v = finish(largest.to(tl.float32), None, bias, None, bound, ACT, ALPHA, BETA)
            largest = tl.where(some, v, float("-inf"))
        place = rows[:, None] * C + cols[None, :]
        tl.store(out + place, largest.to(DTYPE), mask=row_ok[:, None] & (cols < C)[None, :])
        x_image += H * W * C
        out += out_rows * C


def images_a_program(tiles: int, batch: int, taps: int) -> int:
    """For how many images a program of a tile reads bounds per neuron once: a power of two."""
    if taps > KEPT_TAPS:
        return 1
    wanted = min(MOST_IMAGES, tiles * batch // ENOUGH_PROGRAMS)
    return next_power_of_two(wanted + 1) // 2 if wanted > 1 else 1


def keeps_order(act: str, alpha: float) -> bool:
    """Whether the activation, as the kernels name it, never takes the larger of two values to a smaller one, or NaN.

    ``alpha`` is what float32 makes of it: one too small for that is zero there, and infinity times zero is NaN.
    """
    limits = torch.finfo(torch.float32)
    least = {"leaky_relu": limits.smallest_normal, "elu": 0}
    sloped = act in least and least[act] <= alpha <= limits.max
    return sloped or act in ("identity", "relu", "hardtanh")


def max_pool2d(
    x: Tensor,  # (B, C, H, W), float16, bfloat16 or float32
    bias: Tensor | None = None,  # (C,)
    bound: Tensor | None = None,  # broadcasts to (C, H, W)
    kernel_size: Sequence[int] = (1, 1),
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
    act: str = "identity",
    act_args: Sequence[float] = (),
    *,
    counts: None = None,
) -> Tensor:  # (B, C, P, Q), x.dtype, channels_last
    """``ops.max_pool2d`` by the Triton kernel; same arguments, values and errors. An x that is not NHWC is copied.

    ``counts`` must be None: a value that several windows read would be counted by each. A bias that is not finite may
    give NaN at other places than the reference has them.
    """
    batch, channels, p, q = check_max_pool2d(
        x, bias, bound, kernel_size, stride, padding, dilation, ceil_mode, act, act_args
    )
    check_kernel_operands("max_pool2d", x, x.shape[1:])
    check_kernel_operands("max_pool2d", x, (channels, p, q))
    check_rows("max_pool2d", batch * p * q)
    taps = kernel_size[0] * kernel_size[1]
    if taps > MOST_TAPS:
        raise ValueError(f"unit_fast.kernels: a window of {tuple(kernel_size)} has more than {MOST_TAPS} positions")
    if counts is not None:
        raise ValueError("unit_fast.kernels: max_pool2d counts no saturation; clamp before it, by epilogue")
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty((batch, channels, p, q), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if out.numel() == 0:
        return out
    operand = per_sample(bound, x.shape[1:], channels_last=True)
    if (
        operand.kind == "outer_channel" and operand.values is not None
    ):  # per row of the map: written out for every neuron
        operand = Operand("neuron", operand.values[:, None, None].expand(*x.shape[2:], channels).contiguous())
    act_name, alpha, beta = activation_constants(act, act_args)
    block_c = min(64, next_power_of_two(channels))
    block_m = TILE // block_c
    tiles = triton.cdiv(p * q, block_m) * triton.cdiv(channels, block_c)
    whole = vector_multiple(channels, x) * x.element_size() == 16  # else bounds take more registers than there are
    images = images_a_program(tiles, batch, taps) if operand.kind == "neuron" and whole else 1
    with on_device_of(x):
        _max_pool2d_kernel[(tiles * triton.cdiv(batch, images),)](
            x,
            out,
            bias,
            operand.values,
            batch,
            channels,
            x.shape[2],
            x.shape[3],
            p * q,
            q,
            STRIDE_H=stride[0],
            STRIDE_W=stride[1],
            PAD_H=padding[0],
            PAD_W=padding[1],
            DILATION_H=dilation[0],
            DILATION_W=dilation[1],
            R=kernel_size[0],
            S=kernel_size[1],
            MULTIPLE_C=vector_multiple(channels, x),
            BOUND=operand.kind,
            ACT=act_name,
            ALPHA=alpha,
            BETA=beta,
            LAST=operand.kind != "neuron" and keeps_order(act_name, alpha),
            IMAGES=images,
            BLOCK_M=block_m,
            BLOCK_C=block_c,
            num_warps=4,
            enable_fp_fusion=True,  # Triton 3.10 changes the default
        )
    return out
