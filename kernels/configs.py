"""Which tile sizes each kernel is compiled with, as one readable table an architecture, and how a shape prunes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unit_fast.kernels.reference import ACTIVATION_DEFAULTS


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n`` (1 for n < 1)."""
    return 1 << max(0, n - 1).bit_length()


def activation_constants(act: str, act_args: Sequence[float]) -> tuple[str, float, float]:
    """What ``epilogue.activate`` calls the activation, and its two constants."""
    if act == "relu6":
        return "hardtanh", 0.0, 6.0
    alpha, beta, *_ = (*(act_args or ACTIVATION_DEFAULTS[act]), 0.0, 0.0)
    return act, float(alpha), float(beta)


@dataclass(frozen=True)
class PointwiseConfig:
    """A tile of the pointwise kernel: BLOCK_R rows × BLOCK_S positions, LOOPS tiles a program."""

    block_r: int
    block_s: int
    loops: int
    num_warps: int = 4


TILE = 1024
"""Elements a pointwise tile: 4 warps × 32 lanes × 8 half-precision elements, one 128-bit access a lane."""


def pointwise_config(rows: int, positions: int) -> PointwiseConfig:
    """Wide tiles, so that accesses are whole cache lines; several rows a program once there are enough programs."""
    block_s = min(TILE, next_power_of_two(positions))
    block_r = max(1, TILE // block_s)
    tiles = -(-rows // block_r) * -(-positions // block_s)
    return PointwiseConfig(block_r, block_s, loops=4 if tiles >= 4 * 2048 else 1)
