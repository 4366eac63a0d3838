"""The least time a layer can take on a device: its multiply-adds at full rate, or its bytes at full bandwidth."""

import math
from dataclasses import dataclass

from benchmarks.shapes import Layer


@dataclass(frozen=True)
class Ceilings:
    """What a device reaches at best, measured (``benchmarks.gpu``, part "environment") or from a data sheet.

    Attributes:
        bandwidth: bytes a second to and from memory, reads plus writes.
        peak: floating-point operations a second of the dtype in question; a multiply-add counts two.
    """

    bandwidth: float
    peak: float


def flops(layer: Layer, batch: int) -> int:
    """Floating-point operations of the products; the epilogue's are not counted."""
    outputs = batch * math.prod(layer.out_sample)
    return 2 * outputs * math.prod(layer.weight[1:])


def bytes_moved(layer: Layer, batch: int, itemsize: int) -> int:
    """Bytes that must cross the memory bus: every operand read once and the output written once.

    A convolution that strides past pixels reads only those it uses. Bounds are per neuron and read once a batch.
    """
    read = math.prod(layer.sample)
    if layer.operator == "conv2d":
        for stride, kernel in zip(layer.stride, layer.weight[2:], strict=True):
            read = math.ceil(read * min(1, kernel / stride))
    out = math.prod(layer.out_sample)
    activations = batch * (read + out * (2 if layer.residual else 1))
    constants = math.prod(layer.weight) + layer.weight[0] + (out if layer.bounded else 0)
    return itemsize * (activations + constants)


def seconds(layer: Layer, batch: int, itemsize: int, ceilings: Ceilings) -> float:
    """The larger of the two times."""
    return max(flops(layer, batch) / ceilings.peak, bytes_moved(layer, batch, itemsize) / ceilings.bandwidth)


def memory_bound(layer: Layer, batch: int, itemsize: int, ceilings: Ceilings) -> bool:
    """Whether the bytes take longer than the products."""
    return bytes_moved(layer, batch, itemsize) / ceilings.bandwidth >= flops(layer, batch) / ceilings.peak
