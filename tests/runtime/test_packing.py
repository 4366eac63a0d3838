"""Weights and bounds are laid out once, as the kernels read them, and stay the same tensors otherwise."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fusion.fusing import sanitised
from unit_fast.fusion.fuse import fuse
from unit_fast.fusion.rewrite import constant, copy_graph
from unit_fast.kernels.layout import per_sample
from unit_fast.runtime.packing import pack_bounds, pack_constants
from unit_fast.sites import bound_path

X = torch.randn(2, 6, 7, 7, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A convolution used twice, a depthwise one, a bare one, a clamp alone and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.depthwise = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.bare, self.head = nn.Conv2d(6, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(F.relu(self.twice(F.relu(self.twice(x))))))
        return F.relu(self.head(F.relu(F.max_pool2d(self.bare(x), 2)).mean((2, 3))))


def packed() -> tuple[object, object]:
    module = sanitised(Net(), X)
    fused = fuse(module)
    pack_constants(fused)
    return module, fused


def test_the_kernels_find_their_layouts():
    _, fused = packed()
    seen = set()
    for node in fused.graph.nodes:
        name = str(node.target)
        if name.startswith(("unit_fast.conv2d", "aten.conv2d")):
            weight = constant(fused, node.args[1])
            depthwise = weight.shape[1] == 1
            order = (2, 3, 1, 0) if depthwise else (0, 2, 3, 1)
            assert weight.permute(order).is_contiguous()
            seen.add("depthwise" if depthwise else "weight")
        if name.startswith(("unit_fast.conv2d", "unit_fast.epilogue")):
            bound = constant(fused, node.args[4])
            if bound is None:  # a convolution that no clamp follows
                continue
            operand = per_sample(bound, bound.shape, channels_last=True)
            assert operand.values.data_ptr() == bound.data_ptr(), "the kernel reads it without a copy"
            seen.add(name)
    assert seen == {"weight", "depthwise", "unit_fast.conv2d.default", "unit_fast.epilogue.default"}


def test_values_stay_and_what_was_given_is_not_touched():
    module, fused = packed()
    before = {name: (tensor.stride(), tensor.clone()) for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        torch.testing.assert_close(fused(X), module(X))
    for name, tensor in module.state_dict().items():
        assert tensor.stride() == before[name][0]
        assert torch.equal(tensor, before[name][1])


def test_a_weight_that_is_used_twice_is_packed_once():
    _, fused = packed()
    weights = [constant(fused, n.args[1]) for n in fused.graph.nodes if str(n.target) == "unit_fast.conv2d.default"]
    assert weights[0].data_ptr() == weights[1].data_ptr()
    assert sum(name.endswith("weight_packed") for name, _ in fused.named_buffers()) == 3


def test_packing_twice_moves_nothing():
    _, fused = packed()
    assert pack_constants(fused) == 0


def test_the_bounds_of_maps_alone_are_laid_out_as_channels_last():
    module = sanitised(Net(), X)
    before = {name: (tensor.stride(), tensor.clone()) for name, tensor in module.state_dict().items()}
    again = copy_graph(module)
    pack_bounds(again, ["relu", "relu_1"])
    for site in ("relu", "relu_1", "relu_2"):
        bound = again.get_buffer(bound_path(site))
        assert bound.permute(1, 2, 0).is_contiguous() == (site != "relu_2")
        assert bound.is_contiguous() == (site == "relu_2")
    assert all(torch.equal(tensor, before[name][1]) for name, tensor in again.state_dict().items())
    assert all(tensor.stride() == before[name][0] for name, tensor in module.state_dict().items())
    with torch.no_grad():
        assert torch.equal(again(X), module(X))
