"""The layers part: shrunken layers stay layers, wrong candidates are not timed, totals count every occurrence."""

import time
from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="the kernels need Triton")

import torch
import torch.nn.functional as F

from benchmarks.gpu import layers
from benchmarks.gpu.layers import Measurement, operands, shrunken, timed, verify
from benchmarks.gpu.pool import Outcome
from benchmarks.gpu.session import Session
from benchmarks.shapes import Layer
from unit_fast.kernels.dispatch.candidates import Candidate

POINT = Layer("conv2d", (256, 56, 56), (64, 256, 1, 1), (64, 56, 56), act="relu", bounded=True)
STEM = Layer("conv2d", (3, 224, 224), (64, 3, 7, 7), (64, 112, 112), (2, 2), (3, 3), act="relu", bounded=True)
DEPTHWISE = Layer(
    "conv2d", (96, 112, 112), (96, 1, 3, 3), (96, 56, 56), (2, 2), (1, 1), groups=96, act="relu6", bounded=True
)
MLP = Layer("linear", (197, 3072), (768, 3072), (197, 768), residual=True)
ALL = {"point": POINT, "stem": STEM, "depthwise": DEPTHWISE, "mlp": MLP}


@pytest.mark.parametrize("layer", ALL.values(), ids=ALL)
def test_shrunken_layers_are_small_and_fit_together(layer):
    small = shrunken(layer)
    task = Measurement(small, 2, dry_run=True)
    given = operands(task, 0)
    y = layers.eager(small, given)
    assert y.shape == (2, *small.out_sample)
    assert y.numel() < 10_000
    assert (small.stride, small.act, small.residual) == (layer.stride, layer.act, layer.residual)
    assert set(verify(task).values()) == {""}


def test_a_network_that_cannot_be_captured_costs_no_other(monkeypatch, tmp_path):
    outcomes = {"vgg16": Outcome("vgg16", None, "no torchvision"), "vit_b16": Outcome("vit_b16", (MLP, MLP), None)}
    monkeypatch.setattr(layers, "NETWORKS", tuple(outcomes))
    monkeypatch.setattr(layers, "run_tasks", lambda _, names, **__: (outcomes[name] for name in names))
    session = Session(tmp_path, False, time.monotonic() + 9, 1, "cpu", "NVIDIA H200")
    todo, failures = layers.planned(session)
    merged = replace(MLP, networks=(("vit_b16", 2),))
    assert [(task.layer, task.batch) for task in todo] == [(merged, batch) for batch in (256, 1, 32)]
    assert failures == {"vgg16": "it could not be captured: no torchvision"}


def test_library_stands_for_the_product_and_its_bias_alone():
    small = shrunken(POINT)
    given = operands(Measurement(small, 2, dry_run=True), 0)
    assert torch.equal(layers.library(small, given), F.conv2d(given.x, given.weight, given.bias))
    assert given.bound is not None
    clamped = layers.eager(small, given)
    assert (clamped == given.bound).any()
    assert (clamped <= given.bound).all()


def test_a_wrong_candidate_is_dropped_and_not_timed(monkeypatch):
    task = Measurement(shrunken(POINT), 2, dry_run=True)

    def wrong(*arguments: object) -> torch.Tensor:
        y = layers.REFERENCES["conv2d"](*arguments)
        y[0, 0, 0, 0] += 1
        return y

    def unwritten(*arguments: object) -> torch.Tensor:
        y = layers.REFERENCES["conv2d"](*arguments)
        return torch.empty_like(y)

    def refused(*_: object) -> torch.Tensor:
        raise ValueError("not for this shape")

    made = {"wrong": wrong, "unwritten": unwritten, "refused": refused}
    every = [Candidate(name, "triton", call) for name, call in made.items()]
    every.append(Candidate("library", "library", layers.REFERENCES["conv2d"]))
    monkeypatch.setattr(layers, "candidates_for", lambda *_: every)
    verdicts = verify(task)
    assert verdicts["wrong"].startswith("wrong by up to")
    assert verdicts["unwritten"] == "left elements unwritten, or NaN"
    assert verdicts["refused"] == "ValueError: not for this shape"
    assert verdicts["library"] == ""
    found = timed(replace(task, verified=("library",)))
    assert set(found["providers"]) == {"library", "eager", "epilogue"}
    assert found["configurations"] == {}


@pytest.mark.parametrize("compiler", ["right", "wrong", "broken"])
def test_what_a_compiler_makes_is_verified_and_no_reason_to_lose_the_others(monkeypatch, compiler):
    def compiled(layer, _given):
        if compiler == "broken":
            raise RuntimeError("no kernel for this")
        return lambda operands: layers.eager(layer, operands) + (1 if compiler == "wrong" else 0)

    monkeypatch.setattr(layers, "compiles", lambda _task: True)
    monkeypatch.setattr(layers, "compiled", compiled)
    task = Measurement(shrunken(POINT), 2, dry_run=True)
    verdicts = verify(task)
    assert verdicts["compile"].split(" by")[0] == {
        "right": "", "wrong": "wrong", "broken": "RuntimeError: no kernel for this",
    }[compiler]  # fmt: skip
    good = tuple(name for name, verdict in verdicts.items() if not verdict)
    assert len(good) == len(verdicts) - (compiler != "right")
    assert ("compile" in timed(replace(task, verified=good))["providers"]) == (compiler == "right")


def test_what_takes_the_device_along_is_left_out_when_the_layer_is_verified_again(monkeypatch):
    task = Measurement(POINT, 2, dry_run=True)
    reference = layers.REFERENCES["conv2d"]

    def faulting(*_: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    every = [Candidate("first", "triton", reference), Candidate("faulting", "triton", faulting)]
    every.append(Candidate("last", "triton", reference))
    monkeypatch.setattr(layers, "candidates_for", lambda *_: every)
    monkeypatch.setattr(layers, "device_survives", lambda: False)
    monkeypatch.setattr(layers, "run_tasks", lambda _, tasks, **__: (Outcome(t, verify(t), None) for t in tasks))
    small = replace(task, layer=shrunken(POINT))
    fault = f"{layers.FAULT}RuntimeError: CUDA error: an illegal memory access was encountered"
    assert verify(small) == {"first": "", "faulting": fault}
    ((_, verdicts),) = layers._verified([small], 1, 0.0)
    assert verdicts == {"first": "", "faulting": fault, "last": ""}


def test_verdicts_stay_where_there_is_no_time_to_verify_again(monkeypatch):
    task = Measurement(POINT, 2, dry_run=True)
    answers = [[Outcome(task, {"first": "", "faulting": f"{layers.FAULT}died"}, None)], []]
    monkeypatch.setattr(layers, "run_tasks", lambda *_, **__: answers.pop(0))
    ((found, verdicts),) = layers._verified([task], 1, 0.0)
    assert (found.layer, verdicts["first"]) == (POINT, "")


def test_a_way_that_cannot_be_timed_costs_no_other(monkeypatch):
    def broken(_layer, _given):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(layers, "eager", broken)
    found = timed(Measurement(shrunken(POINT), 2, dry_run=True))
    assert set(found["providers"]) == {"library"}
    assert found["failed"] == {"eager": "RuntimeError: operation not permitted when stream is capturing"}


def test_layers_are_compiled_where_it_tells_most():
    layer = replace(POINT, networks=(("resnet50", 1),))
    tasks = [Measurement(layer, 256, False), Measurement(layer, 32, False), Measurement(POINT, 256, False)]
    assert [layers.compiles(task) for task in tasks] == [True, False, False]


def test_cudnn_is_a_provider_of_its_own(monkeypatch):
    graph = Candidate("cudnn graph 9", "cudnn", layers.REFERENCES["conv2d"])
    library = Candidate("cudnn + epilogue", "library", layers.REFERENCES["conv2d"])
    monkeypatch.setattr(layers, "candidates_for", lambda *_: [graph, library])
    task = Measurement(shrunken(POINT), 2, dry_run=True)
    found = timed(replace(task, verified=("cudnn graph 9", "cudnn + epilogue")))
    assert set(found["providers"]) == {"library", "eager", "cudnn graph", "epilogue"}


def test_totals_count_every_occurrence_and_take_the_faster_of_ours():
    def row(batch, networks, **medians):
        return {"batch": batch, "networks": networks, "providers": {k: {"median": v} for k, v in medians.items()}}

    rows = [
        row(1, {"a": 2, "b": 1}, library=100.0, eager=400.0, epilogue=200.0, fused=300.0),
        row(1, {"a": 1}, library=1000.0, eager=4000.0, epilogue=2000.0),
        row(1, {"a": 1}, library=1.0),  # not all were timed
    ]
    assert layers._totals(rows) == [
        "a batch 1: library 1.200 ms, eager 4.800 ms, epilogue 2.400 ms, best of ours 2.400 ms",
        "b batch 1: library 0.100 ms, eager 0.400 ms, epilogue 0.200 ms, best of ours 0.200 ms",
    ]
