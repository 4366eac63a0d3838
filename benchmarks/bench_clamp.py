"""The clamp by itself, by granularity: what torch makes of it, and the pointwise kernel where there is a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import DEVICE, Measure
from benchmarks.shapes import GPU_BATCHES
from unit_fast.kernels.ops import clamp_bound
from unit_fast.kernels.pointwise import epilogue

SHAPES = {"64x32x32": (64, 32, 32), "512x4x4": (512, 4, 4), "256x56x56": (256, 56, 56)}
BATCHES = GPU_BATCHES if DEVICE.type == "cuda" else (1, 16)
DTYPE = torch.float16 if DEVICE.type == "cuda" else torch.float32


def _compiled(x: Tensor, bound: Tensor) -> Callable[[], Tensor]:
    run = torch.compile(lambda x, bound: clamp_bound(torch.relu(x), bound), dynamic=False)
    return lambda: run(x, bound)


PROVIDERS: dict[str, Callable[[Tensor, Tensor], Callable[[], Tensor]]] = {
    "relu alone": lambda x, _: lambda: torch.relu(x),
    "torch.minimum": lambda x, bound: lambda: torch.minimum(torch.relu(x), bound),
    "clamp_bound": lambda x, bound: lambda: clamp_bound(torch.relu(x), bound),
    "torch.compile": _compiled,
    "epilogue kernel": lambda x, bound: lambda: epilogue(x, bound=bound, act="relu"),
}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "neuron"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES)
def test_clamp(measure: Measure, shape: str, batch: int, granularity: str, provider: str) -> None:
    """ReLU and the clamp after it."""
    if provider == "epilogue kernel" and DEVICE.type != "cuda":
        pytest.skip("the kernel needs a GPU")
    sample = SHAPES[shape]
    generator = torch.Generator(DEVICE).manual_seed(0)
    x = torch.randn((batch, *sample), generator=generator, device=DEVICE, dtype=DTYPE)
    x = x.contiguous(memory_format=torch.channels_last)
    limits = {"tensor": (), "channel": (sample[0], 1, 1), "neuron": sample}[granularity]
    bound = torch.rand(limits, generator=generator, device=DEVICE, dtype=DTYPE)
    expected = torch.relu(x) if provider == "relu alone" else torch.minimum(torch.relu(x), bound)
    measure(
        PROVIDERS[provider](x, bound),
        expected,
        group=f"clamp {shape} batch {batch} per {granularity}",
        provider=provider,
        within=0.0,
        bytes_moved=2 * x.nbytes + (0 if provider == "relu alone" else bound.nbytes),
        flops=x.numel() * (1 if provider == "relu alone" else 2),  # comparisons
    )
