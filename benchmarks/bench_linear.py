"""Every distinct linear layer of the networks with its tail: the library alone, eager, with our epilogue, fused."""

import pytest

from benchmarks.conftest import Measure
from benchmarks.layer_providers import BATCHES, PROVIDERS, layers, measure_layer
from benchmarks.shapes import Layer


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("layer", layers("linear"), ids=lambda layer: layer.name)
def test_linear(measure: Measure, layer: Layer, batch: int, provider: str) -> None:
    """One layer."""
    measure_layer(measure, layer, batch, provider)
