"""A network, sanitised and fused, and which operators are left in it."""

from collections import Counter

import torch
from torch import Tensor, fx, nn

from unit_fast.bounds import Granularity, bound_shape
from unit_fast.capture import capture
from unit_fast.fusion.fuse import fuse
from unit_fast.sites import find_sites, insert_bounds


def sanitised(model: nn.Module, x: Tensor, granularity: Granularity = "neuron") -> fx.GraphModule:
    """The sanitised graph of ``model``, with bounds that activations of unit spread exceed."""
    captured = capture(model, x)
    generator = torch.Generator().manual_seed(5)
    shapes = {site.name: bound_shape(site, granularity) for site in find_sites(captured)}
    return insert_bounds(captured, {name: 0.6 * torch.rand(s, generator=generator) for name, s in shapes.items()})


def operators(module: fx.GraphModule) -> Counter[str]:
    """How often each operator occurs: {"unit_fast.conv2d": 2, "aten.add": 1}."""
    nodes = (node for node in module.graph.nodes if node.op == "call_function")
    return Counter(".".join(str(node.target).split(".")[:2]) for node in nodes)


def fused_like(module: fx.GraphModule, x: Tensor) -> Counter[str]:
    """Fuse ``module``, require the same values at two batch sizes, and return the operators that are left."""
    before = operators(module)
    fused = fuse(module)
    with torch.no_grad():
        for batch in (x, torch.cat([x, 2 * x, -x])):
            torch.testing.assert_close(fused(batch), module(batch), rtol=1e-5, atol=1e-5, equal_nan=True)
    assert operators(module) == before, "the graph that was given must stay as it was"
    return operators(fused)
