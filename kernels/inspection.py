"""What the compiler makes of every shipped configuration, learned on any machine: no GPU is needed.

``python -m unit_fast.kernels.inspection --target 90 --output figures.json`` compiles each configuration with the
operands that need the most registers, to PTX and machine code, and writes registers, spills, shared memory and
instruction counts.
Triton's wheel carries the assembler and the tool that reads the figures.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton

from unit_fast.kernels.backward import clamp_bound_backward
from unit_fast.kernels.compiling import Compilation, compiling_for
from unit_fast.kernels.configs import (
    CONV2D,
    LINEAR,
    STEM,
    TILE,
    DepthwiseConfig,
    MatmulConfig,
    depthwise_configs,
    pointwise_config,
)
from unit_fast.kernels.conv2d import conv2d
from unit_fast.kernels.layout import pack_bound, pack_weight
from unit_fast.kernels.linear import linear
from unit_fast.kernels.pointwise import epilogue
from unit_fast.kernels.pooling import max_pool2d

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory a program may take, by compute capability."""
ACTIVATIONS = {
    "residual+neuron": "relu",  # the most operands
    "gelu+neuron": "gelu",  # the longest activation, without a residual
}


@dataclass(frozen=True)
class Case:
    """A call of a launcher with the operands that need the most registers.

    Attributes:
        kernel: as tables and tests call it.
        config: its tile.
        epilogue: what it ends with, of ``ACTIVATIONS`` where it is a product.
        dtype: of ``DTYPES``.
        call: launches the kernel.
        place: of the kernel among those that are launched.
    """

    kernel: str
    config: str
    epilogue: str
    dtype: str
    call: Callable[[], Any]
    place: int = -1


@dataclass(frozen=True)
class Figures:
    """What one compilation came out as."""

    registers: int
    spills: int  # bytes of stack a thread
    shared: int  # bytes of shared memory a program
    wgmma: int
    mma: int
    cp_async: int
    tma: int
    wide_stores: int  # 128-bit
    narrow_stores: int
    selects: int
    minimums: int  # min.f32 and its like turn NaN into the bound
    wide_multiplies: int  # 64-bit, as the base of a row needs


def cases(
    architecture: int, dtypes: Sequence[str] = ("fp16", "fp32"), *, gelu: bool = True, largest: bool = False
) -> Iterator[Case]:
    """Every shipped configuration of ``architecture`` with the heaviest epilogue; of linear with ``gelu`` too.

    ``largest`` leaves the first tile of each loader only: what spills first, for a fraction of the time.
    """
    for dtype in dtypes:
        for config in _kept(LINEAR[architecture], dtype, largest):
            yield _linear_case(config, dtype, "residual+neuron")
            if gelu and dtype != "fp32":
                yield _linear_case(config, dtype, "gelu+neuron")
        for config in _kept(CONV2D[architecture], dtype, largest):
            k = config.k_of(DTYPES[dtype].itemsize)
            if config.loader == "tma":
                yield _conv2d_case("conv2d", config, dtype, channels=2 * k)
            else:
                yield _conv2d_case("conv2d", config, dtype, channels=k + _vector(dtype))
                yield _conv2d_case("conv2d flat", config, dtype, channels=_vector(dtype), kernel=7)
        for config in _kept(STEM[architecture], dtype, largest):
            yield _conv2d_case("stem", config, dtype, channels=3, kernel=7, stride=2)
        for strip in depthwise_configs(64, 56):
            yield _depthwise_case(strip, dtype)
        yield _pooling_case(dtype)
        yield _packing_case(architecture, dtype)
        yield from _pointwise_cases(dtype)


def _kept(table: Sequence[MatmulConfig], dtype: str, largest: bool) -> list[MatmulConfig]:
    usable = [config for config in table if config.float32 or dtype != "fp32"]
    if not largest:
        return usable
    return list({config.loader: config for config in reversed(usable)}.values())


def _vector(dtype: str) -> int:
    """Elements of 16 bytes. So many past a multiple of 16 elements, sizes allow the widest accesses and no more."""
    return 16 // DTYPES[dtype].itemsize


def _linear_case(config: MatmulConfig, dtype: str, epilogue_name: str) -> Case:
    width = config.k_of(DTYPES[dtype].itemsize)
    k = width if config.loader == "stream" else 4 * width + _vector(dtype)
    n, new = 2 * config.block_n + _vector(dtype), partial(torch.empty, dtype=DTYPES[dtype])
    act = ACTIVATIONS[epilogue_name]
    residual = None if act == "gelu" else new(103, 197, n)
    operands = (new(103, 197, k), new(n, k), new(n), residual, new(197, n), act)
    return Case("linear", str(config), epilogue_name, dtype, partial(linear, *operands, config=config))


def _conv2d_case(name: str, config: MatmulConfig, dtype: str, channels: int, kernel: int = 3, stride: int = 1) -> Case:
    n = 2 * config.block_n + _vector(dtype)
    operands, half = _convolution(dtype, channels, n, kernel, stride), kernel // 2
    arguments: tuple[Any, ...] = (*operands, (stride, stride), (half, half), (1, 1), 1, "relu")
    return Case(name, str(config), "residual+neuron", dtype, partial(conv2d, *arguments, config=config))


def _depthwise_case(config: DepthwiseConfig, dtype: str) -> Case:
    channels = 64 + _vector(dtype)
    x, weight, *others = _convolution(dtype, channels, channels, 3, 1)
    geometry = ((1, 1), (1, 1), (1, 1), channels)
    arguments: tuple[Any, ...] = (x, pack_weight(weight[:, :1], channels), *others, *geometry, "relu")
    name = str(config).removeprefix("depthwise ")
    return Case("depthwise", name, "residual+neuron", dtype, partial(conv2d, *arguments, config=config))


def _convolution(dtype: str, channels: int, n: int, kernel: int, stride: int) -> tuple[Any, ...]:
    """x, weight, bias, residual and bound as the kernels read them where they lie."""
    new, nhwc, size = partial(torch.empty, dtype=DTYPES[dtype]), torch.channels_last, 56
    return (
        new(8, channels, stride * size, stride * size, memory_format=nhwc),
        new(n, channels, kernel, kernel, memory_format=nhwc),
        new(n),
        new(8, n, size, size, memory_format=nhwc),
        pack_bound(new(n, size, size)),
    )


def _pooling_case(dtype: str) -> Case:
    channels, new = 64 + _vector(dtype), partial(torch.empty, dtype=DTYPES[dtype])
    x = new(256, channels, 56, 56, memory_format=torch.channels_last)
    operands = (x, new(channels), pack_bound(new(channels, 56, 56)), (3, 3), (2, 2), (1, 1), (1, 1), False, "relu")
    return Case("max pool", f"{TILE // 64}x64 w4", "neuron", dtype, partial(max_pool2d, *operands))


def _packing_case(architecture: int, dtype: str) -> Case:
    """What is launched before a network's first layer."""
    stem = _conv2d_case("stem", _kept(STEM[architecture], dtype, True)[0], dtype, channels=3, kernel=7, stride=2)
    return replace(stem, kernel="packing", config=f"1x{TILE} w4", epilogue="none", place=0)


def _pointwise_cases(dtype: str) -> Iterator[Case]:
    new = partial(torch.empty, dtype=DTYPES[dtype])
    for rows, positions in ((10**5, 64), (100, 100_352)):
        config = pointwise_config(10**6, positions)
        x, bound = new(rows, positions), new(positions)
        name = f"{config.block_r}x{config.block_s} w{config.num_warps}"
        call = partial(epilogue, x, None, new(positions), x, bound, "relu", config=config)
        yield Case("pointwise", name, "residual+neuron", dtype, call)
        yield Case("clamp backward", name, "neuron", dtype, partial(clamp_bound_backward, x, x, bound), place=0)


def compile_case(case: Case, target: int) -> tuple[Figures, str]:
    """Compile for compute capability ``target``; returns the figures and the PTX.

    Raises:
        RuntimeError: kernels are interpreted in this process.
    """
    with compiling_for(target) as compilations:
        case.call()
    compiled = compilations[case.place]
    return figures_of(compiled), compiled.ptx


def figures_of(compiled: Compilation) -> Figures:
    """Count what matters in the PTX, and read registers and stack out of the machine code."""
    ptx = compiled.ptx
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.cubin)
        command = [str(tool), "--dump-resource-usage", str(binary)]
        usage = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {usage!r}")
    stores = re.findall(r"st\.global(\S*)", ptx)
    wide = sum(s.startswith((".v4.b32", ".v2.b64")) for s in stores)
    return Figures(
        registers=int(found[1]),
        spills=int(found[2]) + int(found[3]),
        shared=compiled.shared,
        wgmma=ptx.count("wgmma.mma_async"),
        mma=ptx.count("mma.sync"),
        cp_async=len(re.findall(r"cp\.async\.c[ag]\.", ptx)),
        tma=ptx.count("cp.async.bulk.tensor"),
        wide_stores=wide,
        narrow_stores=len(stores) - wide,
        selects=len(re.findall(r"\bselp\.", ptx)),
        minimums=len(re.findall(r"\bmin\.\S*f\d+", ptx)),
        wide_multiplies=len(re.findall(r"\b(?:mul|mad)\.(?:lo\.[su]64|wide\.[su]32)\b", ptx)),
    )


def main() -> None:
    """Compile everything for one target and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--target", type=int, choices=sorted(LINEAR), default=90, help="compute capability × 10")
    parser.add_argument("--dtypes", nargs="+", choices=sorted(DTYPES), default=["fp16", "fp32"])
    parser.add_argument("--gelu", action=argparse.BooleanOptionalAction, default=True, help="linear with gelu too")
    parser.add_argument("--largest", action="store_true", help="only the largest tile of each kernel and loader")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args()
    # Three products for one, which take the most registers; torch lets convolutions be one unless told.
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    rows = []
    for case in cases(options.target, options.dtypes, gelu=options.gelu, largest=options.largest):
        figures, _ = compile_case(case, options.target)
        row = {"kernel": case.kernel, "config": case.config, "epilogue": case.epilogue, "dtype": case.dtype}
        rows.append(row | asdict(figures))
    result = {"target": options.target, "triton": triton.__version__, "cases": rows}
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
