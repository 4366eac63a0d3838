"""Which tile sizes each kernel is compiled with, as one readable table an architecture, and how a shape prunes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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


SHARED = 227 * 1024
"""Bytes of shared memory that programs of a multiprocessor have, where there is TMA (sm_90, sm_100)."""


@dataclass(frozen=True)
class MatmulConfig:
    """A tile of the matrix kernels: BLOCK_M rows × BLOCK_N channels, BLOCK_K of the sum a step.

    ``block_k`` counts half-precision elements; float32 takes half of it, the same number of bytes. ``subtiles``
    finishes the columns in so many parts: on sm_90 with a residual and neuron bounds, 128×128 takes 162 registers in
    two parts and 218 in one, 128×256 224 in four and 544 bytes of spills in one. ``float32`` is False where three TF32
    products a step need more registers than there are.
    """

    loader: Literal["tma", "pointer", "stream"]
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    subtiles: Literal[1, 2, 4] = 1
    group_m: int = 8
    float32: bool = True
    prefetch: bool = False

    def k_of(self, itemsize: int) -> int:
        """BLOCK_K for elements of ``itemsize`` bytes."""
        return self.block_k * 2 // itemsize

    def side_by_side(self) -> int:
        """About how many programs of this tile the shared memory of a multiprocessor holds: its stages and 16 KiB each.

        One too many waits for its turn, with an equal share of the tiles.
        """
        stage = (self.block_m + self.block_n) * self.block_k * 2
        if self.loader == "stream":  # the weights once; rows of x, of a residual and of bounds for each stage but one
            once, each = self.block_n * self.block_k * 2, self.block_m * (self.block_k + 2 * self.block_n) * 2
            return max(1, SHARED // (once + (self.num_stages - 1) * each + 16 * 1024))
        return max(1, SHARED // (self.num_stages * stage + 16 * 1024))

    def patch(self) -> tuple[int, int]:
        """The height and width of the part of a map that BLOCK_M rows are, where a convolution loads by TMA."""
        return 8, self.block_m // 8

    def __str__(self) -> str:
        """As the tables of docs/kernels.md name it."""
        early = " prefetch" if self.prefetch else ""
        return f"{self.loader} {self.block_m}x{self.block_n}x{self.block_k} w{self.num_warps} s{self.num_stages}{early}"


# Largest first. Registers and spills of each stand in docs/kernels.md, and a test compiles them all.
LINEAR: dict[int, tuple[MatmulConfig, ...]] = {
    80: (
        MatmulConfig("pointer", 128, 128, 32, num_warps=8, num_stages=4, subtiles=2),
        MatmulConfig("pointer", 128, 64, 32, num_warps=4, num_stages=4, subtiles=2),
        MatmulConfig("pointer", 64, 128, 32, num_warps=4, num_stages=4, subtiles=4),
        MatmulConfig("pointer", 64, 64, 64, num_warps=4, num_stages=3),
        MatmulConfig("pointer", 32, 64, 64, num_warps=4, num_stages=4),
        MatmulConfig("pointer", 16, 64, 64, num_warps=4, num_stages=4),
    ),
    90: (
        MatmulConfig("tma", 128, 256, 64, num_warps=8, num_stages=3, subtiles=4, float32=False),
        MatmulConfig("tma", 128, 128, 64, num_warps=8, num_stages=4, subtiles=2),
        # Two programs side by side, so that one finishes and stores its tile while the other multiplies.
        MatmulConfig("tma", 128, 128, 64, num_warps=4, num_stages=3, subtiles=4, float32=False),
        MatmulConfig("tma", 128, 64, 64, num_warps=4, num_stages=4, subtiles=2),
        MatmulConfig("tma", 64, 128, 64, num_warps=4, num_stages=4, subtiles=2),
        MatmulConfig("tma", 64, 64, 64, num_warps=4, num_stages=4),
        MatmulConfig("tma", 128, 32, 64, num_warps=4, num_stages=4),
        MatmulConfig("pointer", 128, 128, 64, num_warps=8, num_stages=3, subtiles=2),
        MatmulConfig("pointer", 128, 64, 64, num_warps=4, num_stages=4, subtiles=2),
        MatmulConfig("pointer", 64, 128, 64, num_warps=4, num_stages=4, subtiles=2),
        MatmulConfig("pointer", 64, 64, 64, num_warps=4, num_stages=4),
        MatmulConfig("pointer", 128, 32, 64, num_warps=4, num_stages=3),
        MatmulConfig("pointer", 32, 64, 64, num_warps=4, num_stages=4),
        MatmulConfig("pointer", 16, 64, 128, num_warps=4, num_stages=4, float32=False),
        MatmulConfig("pointer", 16, 32, 128, num_warps=4, num_stages=4, float32=False),
        MatmulConfig("pointer", 16, 64, 64, num_warps=4, num_stages=4),
        # For short sums, where memory is the limit: little shared memory, so that many programs run side by side.
        MatmulConfig("pointer", 128, 128, 64, num_warps=8, num_stages=2, subtiles=2, float32=False),
        MatmulConfig("pointer", 64, 128, 64, num_warps=8, num_stages=2, prefetch=True, float32=False),
        MatmulConfig("pointer", 128, 64, 64, num_warps=4, num_stages=2, prefetch=True, float32=False),
        MatmulConfig("pointer", 64, 64, 64, num_warps=4, num_stages=2, prefetch=True, float32=False),
        MatmulConfig("pointer", 128, 32, 64, num_warps=4, num_stages=2, prefetch=True, float32=False),
        # For sums of one step.
        MatmulConfig("stream", 64, 128, 64, num_warps=4, num_stages=3, float32=False),
        MatmulConfig("stream", 64, 64, 64, num_warps=4, num_stages=3, float32=False),
        MatmulConfig("stream", 64, 128, 128, num_warps=8, num_stages=3, float32=False),
        MatmulConfig("stream", 64, 64, 128, num_warps=4, num_stages=3, float32=False),
        MatmulConfig("stream", 64, 128, 256, num_warps=8, num_stages=2, float32=False),
        MatmulConfig("stream", 64, 64, 256, num_warps=4, num_stages=2, float32=False),
    ),
}
# On sm_100 Triton 3.6 spills in the TMA tile of 64×128, and Triton 3.9 in streams of eight warps.
LINEAR[100] = tuple(
    c
    for c in LINEAR[90]
    if (c.loader, c.block_m, c.block_n) != ("tma", 64, 128) and (c.loader, c.num_warps) != ("stream", 8)
)


def architecture(capability: int) -> int:
    """The column of the tables for a compute capability (major·10 + minor): the newest that is not newer."""
    return max((a for a in LINEAR if a <= capability), default=80)


SHORT = 4
"""Steps of a sum up to which the tiles for short sums, those of two stages, are worth timing."""


def fitting(
    table: Sequence[MatmulConfig],
    m: int,
    n: int,
    k: int,
    programs: int,
    *,
    tma: bool,
    stream: bool = False,
    itemsize: int = 2,
) -> tuple[MatmulConfig, ...]:
    """The configurations worth timing for M×N outputs of sums over K, the likeliest best first.

    Left out: loaders that cannot address the operands, tiles that would spill with elements of ``itemsize`` bytes,
    tiles of which more than half would lie outside, tall and narrow ones where those of 64 columns would be more than
    half full, and those for short sums where the sum is long.

    Args:
        table: of the architecture.
        m: rows of the output.
        n: columns of the output.
        k: products a sum.
        programs: multiprocessors.
        tma: whether TMA can address the operands.
        stream: whether the rows of x are those of the output.
        itemsize: bytes an element.
    """
    loaders = {"pointer"} | ({"tma"} if tma else set()) | ({"stream"} if stream else set())
    usable = [c for c in table if c.loader in loaders and (c.float32 or itemsize < 4)]
    usable = [c for c in usable if c.num_stages > 2 or k <= SHORT * c.k_of(itemsize)]
    step = max(64, next_power_of_two(k))
    usable = [c for c in usable if c.loader != "stream" or c.k_of(itemsize) == step]
    kept = [c for c in usable if c.block_m < 2 * max(m, 16) and c.block_n < 2 * max(n, 64)]
    kept = [c for c in kept if c.block_n > 32 or c.block_m < 128 or 0 < n % 64 <= 32]
    return tuple(sorted(kept or usable[-1:], key=lambda config: _expected_cost(config, m, n, k, programs)))


def _expected_cost(config: MatmulConfig, m: int, n: int, k: int, programs: int) -> float:
    """How long a configuration should take, in no unit: for an order in which to time them.

    Tiles come in rounds, of 16 warps on a multiprocessor; a tile costs its products, its epilogue and its start. TMA
    pays where sums are long, and two stages where they are short. Fitted to what an H200 took for 90 problems of two
    networks: of the tiles that there were, the fastest was always among the first six in this order, and with those
    that came later it is among the first eight, but for a few narrow outputs. Streams go before all else once there are
    several tiles a program.
    """
    side_by_side = 16 // config.num_warps
    tiles = -(-m // config.block_m) * -(-n // config.block_n)
    if config.loader == "stream" and tiles > 2 * programs:
        return 1.0 / config.block_n
    rounds = tiles / (programs * side_by_side)
    sharing = side_by_side if rounds > 1 else max(1.0, rounds * side_by_side)
    rounds = math.ceil(rounds) if rounds < 4 else rounds
    tile = (k + 256) * (config.block_m * config.block_n + 4096) * sharing + 1e6
    by_loader = 1.0 if config.loader == "pointer" else 1.4 if k <= SHORT * config.block_k else 0.8
    return rounds * tile * by_loader * (0.9 if config.num_stages == 2 else 1.0)


# 8 warps have returned wrong numbers for a flat K loop on an H100 (pytorch#173068). Those here were right on an H200
# in every case of benchmarks/gpu/values.py; a TMA tile of 128×256 with 8 warps did not, where N ends within the tile.
CONV2D: dict[int, tuple[MatmulConfig, ...]] = {
    80: (
        MatmulConfig("pointer", 128, 64, 32, num_warps=4, num_stages=4, subtiles=2, float32=False),
        MatmulConfig("pointer", 64, 64, 64, num_warps=4, num_stages=3),
        MatmulConfig("pointer", 64, 32, 64, num_warps=4, num_stages=4),
        MatmulConfig("pointer", 32, 64, 64, num_warps=4, num_stages=4),
    ),
    90: (
        MatmulConfig("tma", 128, 128, 64, num_warps=8, num_stages=4, subtiles=2, float32=False),
        MatmulConfig("tma", 128, 64, 64, num_warps=4, num_stages=4, subtiles=2),
        MatmulConfig("tma", 64, 128, 64, num_warps=4, num_stages=4, subtiles=2),
        MatmulConfig("tma", 64, 64, 64, num_warps=4, num_stages=4),
        MatmulConfig("pointer", 128, 128, 64, num_warps=8, num_stages=3, subtiles=2, float32=False),
        MatmulConfig("pointer", 128, 64, 64, num_warps=4, num_stages=4, subtiles=2, float32=False),
        MatmulConfig("pointer", 64, 128, 64, num_warps=4, num_stages=4, subtiles=2),
        MatmulConfig("pointer", 64, 64, 64, num_warps=4, num_stages=4),
        MatmulConfig("pointer", 64, 32, 64, num_warps=4, num_stages=4),
        MatmulConfig("pointer", 32, 64, 64, num_warps=4, num_stages=4),
        MatmulConfig("pointer", 32, 32, 128, num_warps=4, num_stages=4, float32=False),
        MatmulConfig("pointer", 16, 32, 128, num_warps=4, num_stages=4, float32=False),
    ),
}
CONV2D[100] = CONV2D[90]

# Sums of a few hundred products over an image that was packed for it, most often to 32 or 64 channels.
STEM: dict[int, tuple[MatmulConfig, ...]] = {
    80: (
        MatmulConfig("pointer", 128, 64, 32, num_warps=4, num_stages=4, subtiles=2, float32=False),
        MatmulConfig("pointer", 64, 64, 64, num_warps=4, num_stages=3),
        MatmulConfig("pointer", 64, 64, 32, num_warps=4, num_stages=4),
        MatmulConfig("pointer", 64, 32, 32, num_warps=4, num_stages=4),
    ),
    90: (
        MatmulConfig("pointer", 128, 128, 64, num_warps=8, num_stages=3, subtiles=2, float32=False),
        MatmulConfig("pointer", 128, 64, 64, num_warps=4, num_stages=3, subtiles=2, float32=False),
        MatmulConfig("pointer", 128, 64, 32, num_warps=4, num_stages=4, subtiles=2, float32=False),
        MatmulConfig("pointer", 64, 64, 64, num_warps=4, num_stages=3),
        MatmulConfig("pointer", 64, 64, 32, num_warps=4, num_stages=4),
        MatmulConfig("pointer", 128, 32, 32, num_warps=4, num_stages=4),
        MatmulConfig("pointer", 64, 32, 32, num_warps=4, num_stages=4),
    ),
}
STEM[100] = STEM[90]


@dataclass(frozen=True)
class DepthwiseConfig:
    """A tile of the depthwise kernel: BLOCK_M strips of ``strip`` neighbouring outputs in a row × BLOCK_C channels."""

    block_m: int
    block_c: int
    strip: Literal[1, 2, 4]
    num_warps: int = 4

    def __str__(self) -> str:
        """As the tables of docs/kernels.md name it."""
        return f"depthwise {self.block_m}x{self.block_c} strip {self.strip} w{self.num_warps}"


def depthwise_configs(channels: int, width: int) -> tuple[DepthwiseConfig, ...]:
    """What is worth timing for maps of ``width`` outputs a row, the likeliest best first.

    As many channels as there are, up to 64 (one 128-byte line of half precision). Long strips read and convert each
    input and weight less often, short ones spread small maps over more programs; 8 elements a thread take fewer
    instructions, 4 so few registers that twice as many warps hide each other's waiting.
    """
    block_c = min(64, next_power_of_two(channels))
    strips: tuple[Literal[1, 2, 4], ...] = (4, 2, 1) if width >= 4 else (2, 1) if width >= 2 else (1,)
    return tuple(
        DepthwiseConfig(max(1, elements * 128 // block_c), block_c, strip) for elements in (8, 4) for strip in strips
    )
