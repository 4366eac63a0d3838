"""The arithmetic of int8: scales, zero points and integer limits that never exceed a bound.

A uint8 tensor q stands for (q − zero_point) · scale. Quantising saturates at 0 and 255, so with
scale = bound / 255 and zero point 0 it is relu and clamp in one. Where one scale cannot be the bound of every neuron,
the clamp is an integer Min: rounding is monotone, so it may come after. All of it is arranged so that the product in
float32, which is what runtimes compute, is at most the bound: to the bit, not within a tolerance.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVELS = 255
# Scales below lose digits as denormal numbers; so small a bound is kept by the integer limit 0 instead.
SMALLEST_RANGE = 1e-30
# A bound that lies further above everything the data reaches would waste more than one of eight bits.
LOOSEST = 2.0
_LARGEST_BIAS = 2.0**30

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Quantizer:
    """How a float32 tensor becomes uint8.

    Attributes:
        scale: one float32.
        zero_point: one uint8, the integer that stands for 0.
        limit: what the integers are clamped to after quantising, uint8, broadcasts to one sample; None where the
            largest integer, 255, already is at most the bound.
    """

    scale: Float32  # ()
    zero_point: UInt8  # ()
    limit: UInt8 | None = None

    @property
    def largest(self) -> Float32:
        """The largest value that comes out, in the shape of ``limit``."""
        return self.value(np.uint8(LEVELS) if self.limit is None else self.limit)

    def value(self, quantised: UInt8 | np.uint8) -> Float32:
        """(q − zero_point) · scale in float32, as DequantizeLinear computes it."""
        steps = np.asarray(quantised, np.int32) - np.int32(self.zero_point)
        return np.asarray(steps.astype(np.float32) * self.scale)


def for_range(lower: float, upper: float) -> Quantizer:
    """For values from ``lower`` to ``upper``, widened to include 0, which is exact: padding stays nothing."""
    lower, upper = min(lower, 0.0), max(upper, 0.0)
    width = max(upper - lower, SMALLEST_RANGE)
    zero_point = np.round(-lower / width * LEVELS)
    return Quantizer(np.asarray(width / LEVELS, np.float32), np.asarray(zero_point, np.uint8))


def for_bound(bound: NDArray[np.floating], lower: float, observed: float, *, per_unit: bool = False) -> Quantizer:
    """For an activation that may not exceed ``bound``.

    Args:
        bound: of any shape; +inf leaves an element to the observed range.
        lower: the smallest value the activation takes; 0 after a relu, whose work the zero point 0 then does.
        observed: the largest value it takes on the calibration data.
        per_unit: the scale follows what was observed, since an integer limit clamps in any case; otherwise it is
            the bound, unless the bound lies more than ``LOOSEST`` times above.
    """
    exact = bound.astype(np.float64)
    finite = exact[np.isfinite(exact)]
    highest = float(finite.max()) if finite.size == exact.size else max(observed, 0.0)
    if 0 < observed < highest and (per_unit or highest > LOOSEST * observed):
        highest = observed
    lowest = min(lower, 0.0, float(finite.min()) if finite.size else 0.0)
    scale, zero_point = _fit(lowest, max(highest, SMALLEST_RANGE) if lowest >= 0 else highest)
    plain = Quantizer(np.asarray(scale, np.float32), np.asarray(zero_point, np.uint8))
    limit = integer_limit(exact, plain)
    return plain if np.all(limit == LEVELS) else Quantizer(plain.scale, plain.zero_point, limit)


def _fit(lowest: float, highest: float) -> tuple[np.float32, int]:
    """Scale and zero point whose integers cover ``lowest`` and, where any lies above 0, end at ``highest``."""
    if lowest >= 0:
        return _rounded(highest / LEVELS, LEVELS, highest, down=True), 0
    zero_point = int(np.ceil(lowest / (lowest - max(highest, 0.0)) * LEVELS))
    if zero_point < LEVELS:
        # The zero point was rounded up, so the lower end is covered; the scale follows from the upper one.
        steps = LEVELS - zero_point
        return _rounded(highest / steps, steps, highest, down=True), zero_point
    # All that lies above 0 is less than a step: the integer limit sees to it.
    zero_point = LEVELS - 1 if highest > 0 else LEVELS
    return _rounded(-lowest / zero_point, zero_point, -lowest, down=False), zero_point


def _rounded(scale: float, steps: int, end: float, *, down: bool) -> np.float32:
    """The float32 nearest to ``scale`` whose product with ``steps``, rounded, is at most (or at least) ``end``."""
    found = np.float32(scale)
    while (np.float32(steps) * found > end) if down else (np.float32(steps) * found < end):
        found = np.nextafter(found, np.float32(0) if down else np.float32(np.inf))
    return found


def integer_limit(bound: NDArray[np.float64], plain: Quantizer) -> UInt8:
    """The largest integers whose values do not exceed ``bound``, in its shape."""
    # One too many, then down to where the rounded product fits; the quotient of rounded numbers does not tell.
    steps = np.floor(np.clip(bound / float(plain.scale), -LEVELS - 1, LEVELS)) + 1 + int(plain.zero_point)
    limit = np.clip(steps, 0, LEVELS).astype(np.uint8)
    for _ in range(2):
        limit = np.where((plain.value(limit) > bound) & (limit > 0), limit - 1, limit).astype(np.uint8)
    return np.asarray(limit, np.uint8)


def quantise_weight(
    weight: Float32, axis: int, bits: int = 8, input_scale: float = 1.0, bias: Float32 | None = None
) -> tuple[NDArray[np.int8], Float32]:
    """Symmetric integers and one scale for each index of ``axis``.

    Args:
        weight: of a convolution or linear layer.
        axis: of its output channels.
        bits: 8, or 7 where products of two 8-bit numbers overflow; see docs/export.md.
        input_scale: of the tensor that the weight is multiplied with.
        bias: (channels,): the scale grows where the bias, an int32 in steps of input scale · scale, would overflow.
    """
    largest = 2 ** (bits - 1) - 1
    others = tuple(index for index in range(weight.ndim) if index != axis % weight.ndim)
    scale = np.abs(weight.astype(np.float64)).max(others) / largest
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias.astype(np.float64)) / (input_scale * _LARGEST_BIAS))
    scale = np.where(scale > SMALLEST_RANGE, scale, 1.0).astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    steps = np.round(weight.astype(np.float64) / scale.reshape(shape).astype(np.float64))
    return np.clip(steps, -largest, largest).astype(np.int8), scale


def mean_shift(weight: Float32, integers: NDArray[np.int8], scale: Float32, axis: int, mean: Float64) -> Float64:
    """What rounding the weights adds to each output channel on average, for inputs whose channels have ``mean``.

    Rounding errors of a row do not cancel behind a ReLU, where all inputs are positive, and no pooling averages the
    shift away as it does noise. (Nagel et al. 2019, arXiv 1906.04721, section 4.2; zeros around images are neglected.)

    Args:
        weight: of a convolution or linear layer.
        integers: what :func:`quantise_weight` made of it.
        scale: one for each index of ``axis``.
        axis: of its output channels.
        mean: (input channels,): over samples and positions.
    """
    shape = [1] * weight.ndim
    shape[axis] = -1
    error = np.moveaxis(integers * scale.reshape(shape).astype(np.float64) - weight, axis, 0)
    rows = error.reshape(*error.shape[:2], -1).sum(2)  # (outputs, inputs of its group)
    groups = mean.size // rows.shape[1]
    return np.asarray((rows * mean.reshape(groups, -1).repeat(len(rows) // groups, axis=0)).sum(1))


def quantise_bias(bias: Float32, input_scale: Float32, weight_scale: Float32) -> tuple[NDArray[np.int32], Float32]:
    """int32 in steps of input scale · weight scale, one a channel, as integer kernels add it."""
    scale = np.maximum(input_scale * weight_scale, np.finfo(np.float32).tiny).astype(np.float32)
    return np.round(bias.astype(np.float64) / scale.astype(np.float64)).astype(np.int32), scale
