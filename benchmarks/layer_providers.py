"""How pytest-benchmark times the layers of the networks: by the providers of ``benchmarks.gpu.layers``."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import DEVICE, Measure
from benchmarks.gpu.layers import candidates
from benchmarks.layer_calls import Operands, compiled, eager, library, operands_of
from benchmarks.roofline import bytes_moved, flops
from benchmarks.shapes import GPU_BATCHES, NETWORKS, Layer, layers_of, merged
from unit_fast.kernels.agreement import ROUNDED_TWICE, tolerance_of
from unit_fast.kernels.dispatch.candidates import REFERENCES

ON_GPU = DEVICE.type == "cuda"
DTYPE = torch.float16 if ON_GPU else torch.float32
BATCHES = GPU_BATCHES if ON_GPU else (1, 16)
PROVIDERS = ("library", "eager", "compile", "epilogue", "cudnn graph", "fused")


@functools.cache
def layers(operator: Literal["conv2d", "linear"]) -> tuple[Layer, ...]:
    """Every distinct layer of that kind; on a CPU those of the small network."""
    networks = NETWORKS if ON_GPU else ("resnet18_32",)
    found = merged({network: layers_of(network) for network in networks})
    return tuple(layer for layer in found if layer.operator == operator)


def measure_layer(measure: Measure, layer: Layer, batch: int, provider: str) -> None:
    """Verify and time one provider of one layer."""
    given = operands_of(layer, batch, DEVICE.type, DTYPE, seed=0)
    arguments = given.arguments(layer, packed=False)
    double = tuple(a.double() if isinstance(a, Tensor) else a for a in arguments)
    exact = REFERENCES[layer.operator](*double) if provider != "library" else library(layer, _as_double(given))
    measure(
        _call(layer, given, provider),
        exact,
        group=f"{layer.name} batch {batch}",
        provider=provider,
        within=(1 if provider == "fused" else ROUNDED_TWICE) * tolerance_of(DTYPE),
        bytes_moved=bytes_moved(layer, batch, DTYPE.itemsize),
        flops=flops(layer, batch),
    )


def _call(layer: Layer, given: Operands, provider: str) -> Callable[[], Tensor]:
    if provider in ("library", "eager"):
        return functools.partial({"library": library, "eager": eager}[provider], layer, given)
    if provider == "compile":
        return functools.partial(compiled(layer, given), given)
    wanted = {"fused": "triton", "cudnn graph": "cudnn", "epilogue": "library"}[provider]
    # The likeliest best configuration; benchmarks.gpu times them all.
    found = next((candidate for candidate in candidates(layer, given, 1) if candidate.provider == wanted), None)
    if found is None:
        pytest.skip("needs a GPU" if not ON_GPU else "cuDNN's graph API is not installed")
    return functools.partial(found.call, *given.arguments(layer, packed=wanted == "triton"))


def _as_double(given: Operands) -> Operands:
    double: dict[str, Any] = {
        name: tensor if tensor is None else tensor.double() for name, tensor in vars(given).items()
    }
    return Operands(**double)
