"""The worst layers are profiled: those that lose most time over all their occurrences."""

import json
import time

import pytest

pytest.importorskip("triton", reason="the kernels need Triton")

import torch

from benchmarks import roofline
from benchmarks.gpu import layers, profile
from benchmarks.gpu.layers import Measurement
from benchmarks.gpu.session import Session
from benchmarks.shapes import Layer

POINT = Layer(
    "conv2d", (16, 7, 7), (16, 16, 1, 1), (16, 7, 7), residual=True, act="relu", bounded=True, networks=(("a", 3),)
)


def row(layer="x", batch=1, count=1, least=10.0, **medians):
    providers = {name: {"median": median, "configuration": "triton 1"} for name, median in medians.items()}
    return {
        "layer": layer, "batch": batch, "networks": {"a": count, "b": 1}, "roofline_microseconds": least,
        "providers": providers,
    }  # fmt: skip


def test_worst_is_what_loses_most_over_all_its_occurrences_each_layer_once():
    rows = [
        row("once", fused=100.0, epilogue=90.0),  # 80 lost
        row("often", count=4, fused=40.0),  # 120 lost
        row("often", batch=32, count=4, fused=50.0),  # 160
        row("fast", count=9, fused=11.0),  # 9
        row("library only", eager=900.0),
        row("little", fused=20.0),  # 10
    ]
    assert [(found["layer"], found["batch"]) for found in profile.worst_of(rows)] == [
        ("often", 32), ("once", 1), ("little", 1),
    ]  # fmt: skip


def test_kernels_of_a_trace_are_counted_by_call_with_their_launch():
    launch = {"grid": [132, 1, 1], "registers per thread": 168, "correlation": 7}
    events = [
        {"cat": "kernel", "name": "conv", "dur": 10.0, "args": launch},
        {"cat": "kernel", "name": "conv", "dur": 14.0, "args": launch},
        {"cat": "kernel", "name": "clamp", "dur": 40.0, "args": {}},
        {"cat": "cpu_op", "name": "aten::conv2d", "dur": 99.0},
        {"cat": "kernel", "name": "no duration"},
    ]
    assert profile.kernels_of({"traceEvents": events}, "kernel", 2) == [
        {"kernel": "clamp", "launches": 0.5, "microseconds": 20.0},
        {
            "kernel": "conv", "launches": 1.0, "microseconds": 12.0, "grid": [132, 1, 1], "registers per thread": 168,
        },
    ]  # fmt: skip


def test_a_layer_of_the_results_is_profiled_by_every_way(tmp_path):
    measurement = Measurement(POINT, 2, dry_run=True)
    verdicts = layers.verify(measurement)
    found = layers.timed(Measurement(POINT, 2, True, tuple(verdicts)))
    written = layers._row(measurement, found, roofline.Ceilings(1e12, 1e15))
    session = Session(tmp_path, True, time.monotonic() + 100, 1, "cpu", "cpu")
    session.write("layers", {"rows": [written]})
    (read,) = json.loads((tmp_path / "gpu_dry_run_layers.json").read_text())["figures"]["rows"]
    assert layers.layer_of(read) == POINT
    kernels = profile.profiled(profile.task_of(read, dry_run=True))
    assert {"eager", read["providers"]["fused"]["configuration"]} <= set(kernels)
    assert any("conv" in kernel["kernel"] for kernel in kernels["eager"])
    assert all(kernel["microseconds"] > 0 for kernel in kernels["eager"])
    assert not torch.is_inference_mode_enabled()


def test_without_layers_it_says_what_to_run_first(tmp_path):
    with pytest.raises(RuntimeError, match="run part layers first"):
        profile.measure(Session(tmp_path, True, time.monotonic() + 5, 1, "cpu", "cpu"))
