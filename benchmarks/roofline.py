"""The least time a layer can take on a device: its multiply-adds at full rate, or its bytes at full bandwidth."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

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


@dataclass(frozen=True)
class CpuCeilings:
    """What this machine's processor reaches in float32, with the threads that torch has.

    Attributes:
        peak: floating-point operations a second: the better of a matrix product and a convolution.
        copies: (bytes, bytes a second) of copies, by how many they move: small ones stay in a cache.
    """

    peak: float
    copies: tuple[tuple[int, float], ...]

    def at(self, moved: int) -> Ceilings:
        """The ceilings of what moves ``moved`` bytes again and again: the best rate that as many or more reached."""
        rates = [rate for size, rate in self.copies if size >= moved]
        return Ceilings(max(rates, default=self.memory.bandwidth), self.peak)

    def or_better(self, other: "CpuCeilings") -> "CpuCeilings":
        """What either measurement reached, of copies of the same sizes: the clock and neighbours come and go."""
        pairs = zip(self.copies, other.copies, strict=True)
        return CpuCeilings(
            max(self.peak, other.peak), tuple((size, max(rate, again)) for (size, rate), (_, again) in pairs)
        )

    @property
    def memory(self) -> Ceilings:
        """The ceilings of what does not stay in a cache."""
        return Ceilings(max(self.copies)[1], self.peak)


SIZES = tuple(4**power for power in range(8, 15))  # 64 KiB to 256 MiB


def cpu_ceilings(sizes: tuple[int, ...] = SIZES, edge: int = 2048) -> CpuCeilings:
    """Measure them, the best of a few; seconds.

    Args:
        sizes: bytes that copies move, reads plus writes.
        edge: of the square matrices; the convolution has as many products.
    """
    copies = []
    for size in sizes:
        source = torch.rand(size // 8)  # 4 bytes read and 4 written an element
        calls = max(1, 2**24 // size)
        taken = _best(partial(_copy, torch.empty_like(source), source, calls))
        copies.append((size, size * calls / taken))
    matrix = torch.rand(edge, edge)
    maps = torch.rand(1, 128, *[math.isqrt(edge**3 // (9 * 128**2))] * 2).contiguous(memory_format=torch.channels_last)
    kernels = torch.rand(128, 128, 3, 3).contiguous(memory_format=torch.channels_last)
    product = 2 * edge**3 / _best(lambda: matrix @ matrix)
    convolution = 2 * 9 * 128**2 * maps[0, 0].numel() / _best(lambda: F.conv2d(maps, kernels, padding=1))
    return CpuCeilings(max(product, convolution), tuple(copies))


def _copy(target: Tensor, source: Tensor, calls: int) -> None:
    for _ in range(calls):
        target.copy_(source)


def _best(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


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


def work_of(layers: Iterable[Layer], batch: int, itemsize: int) -> tuple[int, int]:
    """Bytes moved and floating-point operations of a network's layers; what is between them is not counted."""
    counted = [(bytes_moved(layer, batch, itemsize), flops(layer, batch)) for layer in layers]
    return sum(moved for moved, _ in counted), sum(operations for _, operations in counted)


def seconds(layer: Layer, batch: int, itemsize: int, ceilings: Ceilings) -> float:
    """The larger of the two times."""
    return max(flops(layer, batch) / ceilings.peak, bytes_moved(layer, batch, itemsize) / ceilings.bandwidth)


def memory_bound(layer: Layer, batch: int, itemsize: int, ceilings: Ceilings) -> bool:
    """Whether the bytes take longer than the products."""
    return bytes_moved(layer, batch, itemsize) / ceilings.bandwidth >= flops(layer, batch) / ceilings.peak
