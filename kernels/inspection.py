"""What the compiler makes of every shipped configuration, learned on any machine: no GPU is needed.

``python -m unit_fast.kernels.inspection --target 90 --output figures.json`` compiles each configuration with the
operands that need the most registers, to PTX and machine code, and writes registers, spills, shared memory and
instruction counts.
Triton's wheel carries the assembler and the tool that reads the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from unit_fast.kernels import backward, depthwise, implicit_gemm, linear, pointwise, pooling, stem
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

ITEM_SIZE = {"fp16": 2, "bf16": 2, "fp32": 4}
POINTERS = (
    "x_ptr",
    "weight_ptr",
    "out_ptr",
    "bias_ptr",
    "residual_ptr",
    "bound_ptr",
    "scale_ptr",
    "grad_ptr",
    "dx_ptr",
)
EPILOGUES: dict[str, dict[str, Any]] = {
    "residual+neuron": {"BOUND": "neuron", "ACT": "relu"},  # the most operands
    "gelu+neuron": {"BOUND": "neuron", "ACT": "gelu", "residual_ptr": None},  # the longest activation
}


@dataclass(frozen=True)
class Case:
    """One kernel with everything its compilation depends on."""

    kernel: str
    config: str
    epilogue: str
    dtype: str
    function: Any
    arguments: dict[str, Any]  # a type for what is passed at run time, a value for what is compiled in
    num_warps: int
    num_stages: int = 3

    @property
    def name(self) -> str:
        """As tables and tests call it."""
        return f"{self.kernel} {self.config} {self.epilogue} {self.dtype}"


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


def matmul_arguments(config: MatmulConfig, dtype: str) -> dict[str, Any]:
    """What the matrix kernels have in common, at sizes that allow the widest accesses."""
    return {
        "count_ptr": None,
        "ALPHA": 0.0,
        "BETA": 0.0,
        "PRECISION": "tf32x3",
        "MULTIPLE_N": 16 // ITEM_SIZE[dtype],
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.k_of(ITEM_SIZE[dtype]),
        "GROUP_M": config.group_m,
        "SUBTILES": config.subtiles,
    }


GEOMETRY = {"STRIDE_H": 1, "STRIDE_W": 1, "PAD_H": 1, "PAD_W": 1, "DILATION_H": 1, "DILATION_W": 1, "R": 3, "S": 3}


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
            yield _conv2d_case("conv2d", config, dtype)
            if config.loader == "pointer":
                yield _conv2d_case("conv2d flat", config, dtype)
        for config in _kept(STEM[architecture], dtype, largest):
            yield _stem_case(config, dtype)
        for strip in depthwise_configs(64, 56):
            yield _depthwise_case(strip, dtype)
        yield _pooling_case(dtype)
        yield from _pointwise_cases(dtype)


def _kept(table: Sequence[MatmulConfig], dtype: str, largest: bool) -> list[MatmulConfig]:
    usable = [config for config in table if config.float32 or dtype != "fp32"]
    if not largest:
        return usable
    return list({config.loader: config for config in reversed(usable)}.values())


def _linear_case(config: MatmulConfig, dtype: str, epilogue: str) -> Case:
    arguments = matmul_arguments(config, dtype) | EPILOGUES[epilogue]
    if config.loader == "tma":
        arguments |= {
            "x_desc": f"tensordesc<{dtype}[{config.block_m}, {arguments['BLOCK_K']}]>",
            "weight_desc": f"tensordesc<{dtype}[{config.block_n}, {arguments['BLOCK_K']}]>",
            "PROGRAMS": 132,
        }
        function = linear._linear_tma_kernel
    elif config.loader == "stream":
        arguments |= {
            "EVEN_K": True,
            "MULTIPLE_K": 16 // ITEM_SIZE[dtype],
            "PROGRAMS": 132,
            "STAGES": config.num_stages,
        }
        function = linear._linear_stream_kernel
    else:
        arguments |= {"STRIDE_H": 1, "STRIDE_W": 1, "EVEN_K": False, "MULTIPLE_K": 16 // ITEM_SIZE[dtype]}
        arguments["PREFETCH"] = config.prefetch
        function = linear._linear_pointer_kernel
    return Case("linear", str(config), epilogue, dtype, function, arguments, config.num_warps, config.num_stages)


def _conv2d_case(kernel: str, config: MatmulConfig, dtype: str) -> Case:
    vector = 16 // ITEM_SIZE[dtype]
    flat = vector if kernel == "conv2d flat" else 0
    arguments = matmul_arguments(config, dtype) | EPILOGUES["residual+neuron"] | GEOMETRY
    function, epilogue = implicit_gemm._conv2d_kernel, "residual+neuron"
    if config.loader == "tma":
        (tile_h, tile_w), block_k = config.patch(), arguments["BLOCK_K"]
        arguments |= {
            "x_desc": f"tensordesc<{dtype}[1, {tile_h}, {tile_w}, {block_k}]>",
            "weight_desc": f"tensordesc<{dtype}[{config.block_n}, {block_k}]>",
            "TILE_H": tile_h,
            "TILE_W": tile_w,
        }
        function = implicit_gemm._conv2d_tma_kernel
    else:
        arguments |= {"FLAT_C": flat, "EVEN_C": False, "MULTIPLE_C": vector}
        if flat:
            arguments |= {"R": 7, "S": 7}
    return Case(kernel, str(config), epilogue, dtype, function, arguments, config.num_warps, config.num_stages)


def _stem_case(config: MatmulConfig, dtype: str) -> Case:
    """The 7×7 of stride 2 over three channels that many networks begin with."""
    epilogue, block_k = "residual+neuron", config.k_of(ITEM_SIZE[dtype])
    arguments = matmul_arguments(config, dtype) | EPILOGUES[epilogue] | GEOMETRY
    arguments |= {"STRIDE_H": 2, "STRIDE_W": 2, "R": 7, "S": 7, "PIXEL": 4, "SPAN": stem.span_of(3, 7)}
    arguments |= {"K": -(-7 * arguments["SPAN"] // block_k) * block_k, "MULTIPLE_W": 1}
    name = str(config)
    return Case("stem", name, epilogue, dtype, stem._stem_kernel, arguments, config.num_warps, config.num_stages)


def _depthwise_case(config: DepthwiseConfig, dtype: str) -> Case:
    epilogue = "residual+neuron"
    arguments: dict[str, Any] = {"count_ptr": None, "ALPHA": 0.0, "BETA": 0.0, "MULTIPLE_C": 16 // ITEM_SIZE[dtype]}
    arguments |= EPILOGUES[epilogue] | GEOMETRY
    arguments |= {"BLOCK_M": config.block_m, "BLOCK_C": config.block_c, "STRIP": config.strip}
    del arguments["R"]  # passed at run time
    name = str(config).removeprefix("depthwise ")
    return Case("depthwise", name, epilogue, dtype, depthwise._depthwise_kernel, arguments, config.num_warps)


def _pooling_case(dtype: str) -> Case:
    arguments: dict[str, Any] = {"MULTIPLE_C": 16 // ITEM_SIZE[dtype], "BLOCK_M": TILE // 64, "BLOCK_C": 64, **GEOMETRY}
    arguments |= {"BOUND": "neuron", "ACT": "relu", "ALPHA": 0.0, "BETA": 0.0, "LAST": False}
    arguments["IMAGES"] = pooling.MOST_IMAGES
    name = f"{TILE // 64}x64 w4"
    return Case("max pool", name, "neuron", dtype, pooling._max_pool2d_kernel, arguments, num_warps=4)


def _pointwise_cases(dtype: str) -> Iterator[Case]:
    for positions in (64, 100_352):
        config = pointwise_config(10**6, positions)
        arguments = {
            "count_ptr": None,
            "scale_ptr": None,
            **{"SCALE": "none", "BIAS": "neuron", "BOUND": "neuron", "ACT": "relu", "ALPHA": 0.0, "BETA": 0.0},
            **{"BLOCK_R": config.block_r, "BLOCK_S": config.block_s, "LOOPS": config.loops},
        }
        name = f"{config.block_r}x{config.block_s} w{config.num_warps}"
        yield Case("pointwise", name, "residual+neuron", dtype, pointwise._epilogue_kernel, arguments, config.num_warps)
        rows = {"BOUND": "neuron", "BLOCK_R": TILE // config.block_s, "BLOCK_S": config.block_s}
        yield Case("clamp backward", name, "neuron", dtype, backward._chunk_kernel, rows, config.num_warps)


def compile_case(case: Case, target: int) -> tuple[Figures, str]:
    """Compile for compute capability ``target``; returns the figures and the PTX."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("nothing is compiled under TRITON_INTERPRET=1; run the inspection in a process without it")
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list[list[object]]] = {}
    for index, name in enumerate(case.function.arg_names):
        given = case.arguments.get(name, "")
        if isinstance(given, str) and given.startswith("tensordesc"):
            signature[name] = given
        elif name in case.arguments:
            signature[name], constants[(index,)] = "constexpr", given
        elif name in POINTERS or name == "partial_ptr":
            signature[name] = "*fp32" if name == "partial_ptr" else f"*{case.dtype}"
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
    if "POSITIONS" in signature:  # the launcher passes sizes that Triton specialises on when they are multiples of 16
        attributes[(case.function.arg_names.index("POSITIONS"),)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=case.function, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    return figures_of(compiled.asm["ptx"], compiled.asm["cubin"], compiled.metadata.shared), compiled.asm["ptx"]


def figures_of(ptx: str, cubin: bytes, shared: int) -> Figures:
    """Count what matters in the PTX, and read registers and stack out of the machine code."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(cubin)
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
        shared=shared,
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
    parser.add_argument("--dtypes", nargs="+", choices=sorted(ITEM_SIZE), default=["fp16", "fp32"])
    parser.add_argument("--gelu", action=argparse.BooleanOptionalAction, default=True, help="linear with gelu too")
    parser.add_argument("--largest", action="store_true", help="only the largest tile of each kernel and loader")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args()
    rows = []
    for case in cases(options.target, options.dtypes, gelu=options.gelu, largest=options.largest):
        figures, _ = compile_case(case, options.target)
        row = {"kernel": case.kernel, "config": case.config, "epilogue": case.epilogue, "dtype": case.dtype}
        rows.append(row | asdict(figures))
    result = {"target": options.target, "triton": triton.__version__, "cases": rows}
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
