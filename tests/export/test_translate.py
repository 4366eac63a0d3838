"""Sanitised graph ⇒ ONNX graph with markers."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from unit_fast.capture import capture
from unit_fast.export import ExportError
from unit_fast.export.flat import FlatGraph, flatten_graph
from unit_fast.export.translate import MARKER_DOMAIN, marker_nodes, translate
from unit_fast.sites import find_sites, insert_bounds


def sanitised(model: nn.Module, example: Tensor, bound: Tensor) -> FlatGraph:
    captured = capture(model.eval(), example)
    bounds = {site.name: bound for site in find_sites(captured)}
    return flatten_graph(insert_bounds(captured, bounds), example)


class Repeated(nn.Module):
    """Three sites of equal bounds, one after the other; an int and a float as limits of a clamp."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:  # (N, 4) -> (N, 4)
        y = torch.relu(self.fc(x))
        y = nn.functional.relu6(y)
        y = torch.relu(self.fc(y))
        return torch.clamp(self.fc(y), 0, 4.5)


def test_sites_of_equal_bounds_stay_apart() -> None:
    """The exporter's optimiser merges equal constants and Min after Min: markers it cannot look into."""
    graph = sanitised(Repeated(), torch.randn(3, 4), torch.tensor(1.5))

    model, bounds = translate(graph, 20)

    assert [entry.site for entry in bounds] == ["relu", "relu6", "relu_1", "hardtanh"]
    assert all(entry.bound.dtype == np.float32 and entry.bound.item() == 1.5 for entry in bounds)
    markers = marker_nodes(model)
    assert [index for index, _ in markers] == [0, 1, 2, 3]
    producers = [source.producer() for _, marker in markers if (source := marker.inputs[0]) is not None]
    assert [producer.op_type for producer in producers if producer is not None] == ["Relu", "Clip", "Relu", "Clip"]
    assert "bounds/relu" not in model.graph.initializers
    limits = [value.const_value.numpy().item() for value in producers[3].inputs[1:]]  # type: ignore[union-attr]
    assert limits == [0.0, 4.5]


@pytest.mark.parametrize("opset", [18, 21, 24])
def test_the_opset_is_the_one_asked_for(opset: int) -> None:
    graph = sanitised(nn.Sequential(nn.Linear(4, 4), nn.GELU()), torch.randn(3, 4), torch.tensor(1.5))

    model, _ = translate(graph, opset)

    assert model.opset_imports == {"": opset, MARKER_DOMAIN: 1}


def test_the_batch_stays_free_even_where_the_example_has_one_sample() -> None:
    graph = sanitised(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(1, 4), torch.tensor(1.5))

    model, _ = translate(graph, 20)

    (x,) = model.graph.inputs
    assert x.shape is not None
    assert isinstance(x.shape[0], ir.SymbolicDim)
    assert x.shape[1] == 4


def test_the_sanitised_graph_is_left_as_it_was() -> None:
    graph = sanitised(Repeated(), torch.randn(3, 4), torch.tensor(1.5))
    before = str(graph.module.graph)

    translate(graph, 20)

    assert str(graph.module.graph) == before


class Unsupported(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(torch.relu(x).unsqueeze(-1) * x.unsqueeze(-2))


def test_an_operator_without_translation_is_an_export_error() -> None:
    graph = sanitised(Unsupported(), torch.randn(3, 4), torch.tensor(1.5))

    with pytest.raises(ExportError, match=r"no translation to ONNX at opset 20: .*eigh"):
        translate(graph, 20)
