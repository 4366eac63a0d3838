"""What every shipped configuration compiles to on sm_80, sm_90 and sm_100; needs Triton, but no GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="the kernels need Triton")

from unit_fast.kernels.inspection import SHARED

RUNS = {  # gelu and float32 take ptxas longest, so for sm_100 only the largest tiles are compiled with them
    "sm_90": (90, "--gelu", "--dtypes", "fp16"),
    "sm_90_float32": (90, "--no-gelu", "--dtypes", "fp32"),
    "sm_100": (100, "--no-gelu", "--dtypes", "fp16"),
    "sm_100_largest": (100, "--gelu", "--largest", "--dtypes", "fp16", "fp32"),
    "sm_80": (80, "--gelu", "--dtypes", "fp16", "fp32"),
}
FOR_12_WARPS = 168  # registers a thread; 237 were taken where the compiler began with the reads of all rows
UNROLLED = 4  # tiles that a program of the pointwise kernel walks over, where the compiler unrolls that
OTHERS = ("depthwise", "max pool", "packing", "pointwise", "clamp backward")
MATRIX = ("linear", "conv2d", "conv2d flat", "stem")


@pytest.fixture(scope="module")
def compilations(tmp_path_factory) -> Iterator[dict[str, tuple[subprocess.Popen[str], Path]]]:
    """All targets compiling side by side, in processes of their own: this one interprets kernels."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    folder = tmp_path_factory.mktemp("figures")
    running = {}
    for name, (target, *options) in RUNS.items():
        output = folder / f"{name}.json"
        command = [
            sys.executable,
            "-m",
            "unit_fast.kernels.inspection",
            "--target",
            str(target),
            "--output",
            str(output),
        ]
        process = subprocess.Popen([*command, *options], env=environment, stderr=subprocess.PIPE, text=True)
        running[name] = (process, output)
    yield running
    for process, _ in running.values():
        process.kill()
        process.communicate()


@pytest.fixture(params=RUNS)
def rows(request, compilations) -> list[dict[str, Any]]:
    process, output = compilations[request.param]
    _, errors = process.communicate(timeout=570)
    assert process.returncode == 0, errors
    result = json.loads(output.read_text())
    return [{"target": result["target"], **case} for case in result["cases"]]


def _name(row: dict[str, Any]) -> str:
    return f"{row['kernel']} {row['config']} {row['epilogue']} {row['dtype']}"


def _elements(row: dict[str, Any]) -> int:
    """How many elements the 128-bit stores of one program write."""
    return row["wide_stores"] * _threads(row) * (16 // (4 if row["dtype"] == "fp32" else 2))


def _tile(row: dict[str, Any]) -> int:
    m, n = re.search(r"(\d+)x(\d+)", row["config"]).groups()
    return int(m) * int(n)


def _strip(row: dict[str, Any]) -> int:
    strip = re.search(r"strip (\d+)", row["config"])
    return int(strip[1]) if strip else 1


def _threads(row: dict[str, Any]) -> int:
    return 32 * int(re.search(r"w(\d+)", row["config"])[1])


def test_every_shipped_configuration_is_sound(rows):
    target = rows[0]["target"]
    assert {row["kernel"] for row in rows} == {*MATRIX, *OTHERS}
    faults = []
    for row in rows:
        forward = row["kernel"] != "clamp backward"  # whose narrow stores are of its partial sums
        packing = row["kernel"] == "packing"  # which stores pixels, and clamps nothing
        checks = {
            "spills": row["spills"] == 0,
            "shared memory": row["shared"] <= SHARED[target],
            "the clamp as a select": (row["selects"] > 0 or packing) and row["minimums"] == 0,
            "64-bit row offsets": row["wide_multiplies"] > 0,
        }
        whole = 16 // (4 if row["dtype"] == "fp32" else 2)
        small = _tile(row) < whole * _threads(row)  # fewer elements a thread than an access of 128 bits has
        if not (small or packing):
            checks["128-bit stores"] = row["wide_stores"] > 0 and (row["narrow_stores"] == 0 or not forward)
        if row["kernel"] == "depthwise":
            checks["the filter's rows one after the other"] = row["registers"] <= FOR_12_WARPS
        if row["kernel"] in MATRIX:
            checks["pipelined loads"] = row["cp_async"] + row["tma"] > 0
            checks["TMA where the configuration says so"] = row["config"].startswith("tma") == (row["tma"] > 0)
            if target == 90:
                tall = int(re.search(r"(\d+)x", row["config"])[1]) >= 64  # wgmma has at least 64 rows
                checks["wgmma"] = (row["wgmma"] > 0) == tall
        walks = row["config"].startswith(("tma", "stream"))  # over tiles
        if forward and not (small or packing or walks):
            tiles = _elements(row) / (_tile(row) * _strip(row))
            checks["one store an output element"] = tiles == 1 or (row["kernel"], tiles) == ("pointwise", UNROLLED)
        faults += [f"{_name(row)}: {check}" for check, passed in checks.items() if not passed]
    assert not faults


def test_inspection_refuses_to_run_interpreted(tmp_path):
    command = [sys.executable, "-m", "unit_fast.kernels.inspection", "--output", str(tmp_path / "figures.json")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert "TRITON_INTERPRET" in result.stderr
    assert not (tmp_path / "figures.json").exists()
