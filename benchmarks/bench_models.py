"""Whole networks, without bounds and with bounds per neuron, by every way to run them that is there."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.conftest import DEVICE, Measure
from benchmarks.models import available, make, make_bounds
from unit_fast.bounds import Bounds
from unit_fast.runtime import sanitize
from unit_fast.runtime.backends import unavailable

ON_GPU = DEVICE.type == "cuda"
NETWORKS = ("resnet18_32", "resnet50", "vgg16", "mobilenet_v2", "vit_b16", "convnext_t") if ON_GPU else ("resnet18_32",)
BATCHES = (1, 32, 256) if ON_GPU else (1, 16)
DTYPE = torch.float16 if ON_GPU else torch.float32
MODES = ("default", "reduce-overhead", "max-autotune") if ON_GPU else ("freezing",)
PROVIDERS = (
    *("unclamped eager", *(f"unclamped {mode}" for mode in MODES)),
    *("sanitised eager", *(f"sanitised {mode}" for mode in MODES)),
    *(f"unit_fast {backend}" for backend in ("auto", "triton", "onnxruntime", "compile")),
)
# Relative to 1 + |output|; a clamp that is lost shows as more.
WITHIN = 0.05 if ON_GPU else 1e-3


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("network", NETWORKS)
def test_model(measure: Measure, network: str, batch: int, provider: str) -> None:
    """One call."""
    if (reason := available(network)) is not None:
        pytest.skip(reason)
    model, example, bounds = _network(network)
    x = example[torch.arange(batch, device=DEVICE) % len(example)]
    clamped = not provider.startswith("unclamped")
    with torch.no_grad():
        expected = _sanitised(model, bounds, example, "eager")(x) if clamped else model(x)
        run = _provider(provider, model, bounds, example, batch)
        measure(
            lambda: run(x),
            expected,
            group=f"{network} batch {batch}",
            provider=provider,
            within=WITHIN,
        )


def _provider(name: str, model: nn.Module, bounds: Bounds, example: Tensor, batch: int) -> Callable[[Tensor], Any]:
    kind, way = name.split()
    if kind == "unit_fast":
        if way != "auto" and (reason := unavailable(way, DEVICE, DTYPE)) is not None:
            pytest.skip(reason)
        return _sanitised(model, bounds, example, way).warmup([batch])
    run: nn.Module = _sanitised(model, bounds, example, "eager") if kind == "sanitised" else model
    if way == "eager":
        return run
    graph = run.graph_module if kind == "sanitised" else run
    if way == "freezing":
        return torch.compile(graph, dynamic=False, options={"freezing": True})
    return torch.compile(graph, dynamic=False, mode=way)


def _sanitised(model: nn.Module, bounds: Bounds, example: Tensor, backend: str) -> Any:
    return sanitize(model, bounds, example, backend=backend)  # type: ignore[arg-type]


@cache
def _network(name: str) -> tuple[nn.Module, Tensor, Bounds]:
    model, example = make(name)
    model, example = model.to(DEVICE, DTYPE), example.to(DEVICE, DTYPE)
    if ON_GPU:
        model = model.to(memory_format=torch.channels_last)
    return model, example, make_bounds(model, example, "neuron")
