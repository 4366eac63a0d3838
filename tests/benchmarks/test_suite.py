"""The pytest-benchmark suite says of every figure what it is of, how right it is and how near the roofline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark", reason="the suite needs pytest-benchmark: pip install unit_fast[bench]")
pytest.importorskip("triton", reason="the layers' providers need Triton")

ROOT = Path(__file__).parents[2]
TOLD = {"provider", "error", "device", "bytes", "flops", "l2", "percent_of_roofline"}


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """Clamps per channel at one shape, and the linear layer of ResNet-18."""
    file = tmp_path_factory.mktemp("suite") / "out.json"
    chosen = "(test_clamp and 512x4x4 and 16 and channel) or (test_linear and 16)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    command += ["benchmarks/bench_clamp.py", "benchmarks/bench_linear.py", f"--benchmark-json={file}"]
    command += ["--benchmark-min-rounds=2", "--benchmark-max-time=0.02", "--benchmark-warmup=off"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TRITON_", "PYTEST_"))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return {bench["fullname"].split("/")[-1]: bench for bench in json.loads(file.read_text())["benchmarks"]}


def test_there_is_a_group_a_problem_and_the_provider_is_the_parameter(benchmarks):
    groups = {}
    for bench in benchmarks.values():
        assert bench["params"]["provider"] == bench["extra_info"]["provider"]
        groups.setdefault(bench["group"], set()).add(bench["params"]["provider"])
    (linear,) = (group for group in groups if group.startswith("linear "))
    assert groups == {
        "clamp 512x4x4 batch 16 per channel": {"relu alone", "torch.minimum", "clamp_bound", "torch.compile"},
        linear: {"library", "eager", "compile"},
    }


def test_every_figure_stands_with_what_explains_it(benchmarks):
    for name, bench in benchmarks.items():
        told = bench["extra_info"]
        assert told.keys() >= TOLD, name
        assert 0 <= told["error"] < 1e-3
        assert told["l2"] in ("warm", "cold", None)
        assert 0 < told["percent_of_roofline"] < 200, name
        assert told["bytes"] > 0
        assert told["flops"] > 0
    clamp = next(bench["extra_info"] for name, bench in benchmarks.items() if "clamp_bound" in name)
    assert clamp["bytes"] == 4 * (2 * 16 * 512 * 16 + 512)
    assert clamp["flops"] == 2 * 16 * 512 * 16
    assert clamp["error"] == 0


def test_whole_networks_are_run_every_way_there_is():
    from benchmarks.bench_models import PROVIDERS

    modes = ("default", "reduce-overhead", "max-autotune")
    wanted = {f"{kind} {way}" for kind in ("unclamped", "sanitised") for way in ("eager", *modes)}
    wanted |= {f"unit_fast {backend}" for backend in ("auto", "triton", "onnxruntime", "compile")}
    assert wanted <= set(PROVIDERS)
    import torch

    if not torch.cuda.is_available():
        files = {f"{kind} {precision}" for kind in ("unclamped", "sanitised") for precision in ("fp32", "int8")}
        assert {f"{file} in {runtime}" for file in files for runtime in ("onnxruntime", "openvino")} <= set(PROVIDERS)
        assert {"unclamped freezing", "sanitised freezing"} <= set(PROVIDERS)
