"""Whole networks, without bounds and with bounds per neuron, by every way to run them that is there."""

import atexit
import importlib.util
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from torch import Tensor, nn

from benchmarks.conftest import DEVICE, Measure
from benchmarks.export import THREADS, openvino_infer
from benchmarks.export_files import PLAIN, PLAIN_INT8, Way, Workshop, samples
from benchmarks.models import available, make, make_bounds
from benchmarks.roofline import work_of
from benchmarks.shapes import GPU_BATCHES, layers_of
from unit_fast.bounds import Bounds
from unit_fast.export import OnnxRuntimeModel
from unit_fast.runtime import sanitize
from unit_fast.runtime.backends import unavailable

ON_GPU = DEVICE.type == "cuda"
NETWORKS = ("resnet18_32", "resnet50", "vgg16", "mobilenet_v2", "vit_b16", "convnext_t") if ON_GPU else ("resnet18_32",)
BATCHES = GPU_BATCHES if ON_GPU else (1, 16)
DTYPE = torch.float16 if ON_GPU else torch.float32
MODES = ("default", "reduce-overhead", "max-autotune", *(() if ON_GPU else ("freezing",)))
RUNTIMES = () if ON_GPU else ("onnxruntime", "openvino")
WAYS = {
    "unclamped fp32": PLAIN,
    "sanitised fp32": Way("auto", "neuron"),
    "unclamped int8": PLAIN_INT8,
    "sanitised int8": Way("auto", "neuron", "int8"),
}
"""Files that runtimes run, by what they are."""
PROVIDERS = (
    *("unclamped eager", *(f"unclamped {mode}" for mode in MODES)),
    *("sanitised eager", *(f"sanitised {mode}" for mode in MODES)),
    *(f"unit_fast {backend}" for backend in ("auto", "triton", "onnxruntime", "openvino", "compile")),
    *(f"{way} in {runtime}" for runtime in RUNTIMES for way in WAYS),
)
# Relative to 1 + |output|; a clamp that is lost shows as more. Eight bits give two digits.
WITHIN = 0.05 if ON_GPU else 1e-3
WITHIN_INT8 = 0.3


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
        made_file = " in " in provider
        run = _exported(provider, network) if made_file else _provider(provider, model, bounds, example, batch)
        moved, operations = work_of(layers_of(network), batch, 1 if "int8" in provider else DTYPE.itemsize)
        measure(
            lambda: run(x),
            expected,
            group=f"{network} batch {batch}",
            provider=provider,
            within=WITHIN_INT8 if "int8" in provider else WITHIN,
            bytes_moved=moved,
            flops=operations,
            replay=False,  # several have CUDA graphs of their own
        )


def _provider(name: str, model: nn.Module, bounds: Bounds, example: Tensor, batch: int) -> Callable[[Tensor], Any]:
    kind, way = name.split()
    if kind == "unit_fast":
        if way != "auto" and (reason := unavailable(way, DEVICE, DTYPE)) is not None:
            pytest.skip(reason)
        warmed: Callable[[Tensor], Any] = _sanitised(model, bounds, example, way).warmup([batch])
        return warmed
    run: Any = _sanitised(model, bounds, example, "eager") if kind == "sanitised" else model
    graph: Callable[[Tensor], Any] = run.graph_module if kind == "sanitised" else run
    if way == "eager":
        return graph
    torch._dynamo.reset()  # after eight compilations of one function Dynamo runs it eagerly
    if way == "freezing":
        compiled = torch.compile(graph, dynamic=False)
        # Dynamo asks for it while it traces: as an option of torch.compile it comes too late, and no weight is frozen.
        with torch.no_grad(), inductor.patch(freezing=True):
            compiled(example[torch.arange(batch) % len(example)].contiguous())
        return compiled
    return torch.compile(graph, dynamic=False, mode=way)


def _exported(provider: str, network: str) -> Callable[[Tensor], Tensor]:
    """A file in its runtime, called with tensors; ``benchmarks.export`` times it alone in a process."""
    way, runtime = provider.split(" in ")
    if importlib.util.find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed: pip install unit_fast[bench]")
    file = _file(network, WAYS[way])
    if runtime == "onnxruntime":
        return OnnxRuntimeModel(file, threads=THREADS)
    infer = openvino_infer(file)
    return lambda x: torch.from_numpy(infer([x.numpy()])[0])


@cache
def _workshop() -> Workshop:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Workshop(Path(folder.name))


@cache
def _file(network: str, way: Way) -> Path:
    return _workshop().file(network, way)


def _sanitised(model: nn.Module, bounds: Bounds, example: Tensor, backend: str) -> Any:
    return sanitize(model, bounds, example, backend=backend)  # type: ignore[arg-type]


@cache
def _network(name: str) -> tuple[nn.Module, Tensor, Bounds]:
    model, example = make(name)
    place: dict[str, Any] = {"device": DEVICE, "dtype": DTYPE}
    place |= {"memory_format": torch.channels_last} if ON_GPU else {}
    model, example = model.to(**place), example.to(**place)
    # On the CPU those of the files, which are fitted to as many images as int8.
    return model, example, make_bounds(model, example if ON_GPU else torch.cat(samples(example)), "neuron")
