"""Every pass over whole networks: the same values as the sanitised graph, and no clamp left on its own."""

import pytest
import torch
from hypothesis import given

from benchmarks.models import available
from benchmarks.models import make as make_benchmark
from tests.export.models import ARCHITECTURES, made_bounds, make
from tests.export.random_nets import RandomCase, drawn_bounds, drawn_nets
from tests.fusion.fusing import fused_like, operators, sanitised
from tests.networks import PlainVGG, SmallResNet, randomised
from tests.properties import examples
from unit_fast.capture import capture
from unit_fast.fusion.fuse import fuse
from unit_fast.runtime.program import clamp_nodes
from unit_fast.sites import insert_bounds

FUSED = {
    "vgg": {"fuse_conv2d": 2, "fuse_linear": 1},
    "resnet": {"fuse_conv2d": 6, "hand_over_biases": 1},
    "mobilenet": {"fuse_conv2d": 3},
    "vit": {"fuse_conv2d": 1, "fuse_linear": 3},
    "dense": {"fuse_conv2d": 3},
}


@pytest.mark.parametrize(
    ("name", "granularity"),
    [*((name, "neuron") for name in ARCHITECTURES), ("resnet", "channel"), ("vit", "tensor")],
)
def test_small_networks(name, granularity):
    model, x = make(name)
    module = insert_bounds(capture(model, x), dict(made_bounds(name, granularity).items()))
    left = fused_like(module, x)
    assert left["unit_fast.clamp_bound"] == 0
    assert {name: count for name, count in fuse(module).meta["fusions"].items() if count} == FUSED[name]


@pytest.mark.parametrize("network", [SmallResNet, PlainVGG])
def test_networks_with_their_norms_folded(network):
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    left = fused_like(sanitised(randomised(network()), x), x)
    assert left["unit_fast.conv2d"] == (5 if network is SmallResNet else 2)
    assert not {"unit_fast.clamp_bound", "aten.relu", "aten.elu", "aten.add"} & set(left)


# What is left that moves or changes activations: everything else has gone into a fused operator.
LARGE = {
    "resnet18_32": {"unit_fast.conv2d": 20},
    "densenet_32": {"unit_fast.epilogue": 15, "unit_fast.conv2d": 27},
    "vit_32": {"unit_fast.linear": 12, "aten.scaled_dot_product_attention": 4, "aten.linear": 5},
}


@pytest.mark.parametrize("name", LARGE)
def test_networks_of_the_benchmarks(name):
    if (reason := available(name)) is not None:
        pytest.skip(reason)
    model, x = make_benchmark(name)
    module = sanitised(model, x[:2])
    fused = fuse(module)
    with torch.no_grad():
        expected = module(x[:2])
        torch.testing.assert_close(fused(x[:2]), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    left = operators(fused)
    assert {op: left[op] for op in LARGE[name]} == LARGE[name]
    assert left["unit_fast.clamp_bound"] == 0
    sites = {node.meta["site"] for node in clamp_nodes(module)}
    assert {node.meta["site"] for node in fused.graph.nodes if "site" in node.meta} == sites


def test_an_unbounded_graph_is_fused_too():
    model, x = make("resnet")
    assert fused_like(capture(model, x), x)["unit_fast.conv2d"] == 6


@examples(8)
@given(net=drawn_nets(), bounds=drawn_bounds())
def test_drawn_networks_with_drawn_bounds(net, bounds):
    case = RandomCase(net)
    module = insert_bounds(case.captured, dict(case.bounds(bounds).items()))
    assert fused_like(module, case.images)["unit_fast.clamp_bound"] == 0
