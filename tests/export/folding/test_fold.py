"""Folded graphs compute, in float64, what the sanitised graphs compute."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.export.models import bounds_for
from tests.export.random_nets import DrawnBounds, DrawnNet, RandomCase, drawn_bounds, drawn_nets
from tests.properties import examples
from unit_fast.bounds import Granularity
from unit_fast.export import export_onnx
from unit_fast.export.flat import FlatGraph, evaluate_sites
from unit_fast.export.folding import FoldResult, fold
from unit_fast.sites import clamp_bound


def assert_equal(graph: FlatGraph, result: FoldResult, inputs: Tensor) -> None:
    """Outputs and activations agree to rounding in float64, and no folded activation passes the limit."""
    outputs, _, activations = evaluate_sites(graph, (inputs,))
    found, _, folded = evaluate_sites(result.graph, (inputs,))
    for ours, theirs in zip(found, outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * theirs.abs().max().item())
    assert list(result.sites) == list(activations)
    for site, outcome in result.sites.items():
        scaled = folded[site] if outcome.scale is None else folded[site] * outcome.scale
        expected = activations[site]
        torch.testing.assert_close(scaled, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@examples(12)
@given(net=drawn_nets(), bounds=st.lists(drawn_bounds(), min_size=6, max_size=6))
@example(DrawnNet((("plain", "relu", "identity"),) * 4, "flatten"), [DrawnBounds("channel", (None, 0.0, None, 0.3))])
@example(
    DrawnNet((("norm_first", "relu", "concat"), ("shared", "relu", "chain"), ("shared", "relu", "split")), "norm"),
    [DrawnBounds("channel", (None,) * 4)],
)
def test_any_network_with_any_bounds_is_the_same_folded(net: DrawnNet, bounds: list[DrawnBounds]) -> None:
    case = RandomCase(net, torch.float64)
    for draw in bounds:
        graph = case.flat(case.bounds(draw))

        result = fold(graph)

        assert_equal(graph, result, case.images)
        assert_equal(graph, result, case.images * 30)
        for node in result.graph.module.graph.nodes:
            if node.target is clamp_bound and result.sites[node.meta["site"]].folded:
                bound = result.graph.module.get_buffer(str(node.args[1].target))
                assert bound.shape == ()
                assert bound == 1


class Sum(nn.Module):
    """A ReLU behind a sum with an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 4, 4) -> (N, 2, 4, 4)
        y = torch.relu(self.first(x))
        return self.last(torch.relu(self.second(y) + y))


@pytest.mark.parametrize(
    ("granularity", "zero"),
    [("tensor", torch.tensor(0.0)), ("channel", torch.tensor([0.5, 0.0, 0.2, 0.3]).reshape(4, 1, 1))],
    ids=["tensor", "channel"],
)
def test_a_bound_of_zero_behind_a_sum_leaves_zero(granularity: Granularity, zero: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Sum().eval(), torch.randn(4, 3, 4, 4)
    bounds = bounds_for(model, x, granularity)
    bounds = replace(bounds, tensors={**bounds.tensors, "relu_1": zero})

    report = export_onnx(model, bounds, tmp_path / "m.onnx", example_input=x, form="folded")

    (site,) = (site for site in report.sites if site.site == "relu_1")
    assert site.form == "folded"
    clamps = [node for node in onnx.load(report.path).graph.node if node.name == "relu_1/clamp"]
    assert [node.op_type for node in clamps] == ["Clip"]
