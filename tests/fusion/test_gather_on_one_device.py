"""The graph of a model does not tell on which device it was captured. "meta" stands for a GPU, which no test needs."""

from collections import Counter

import torch
from torch import Tensor, fx, nn

from unit_fast.capture import _detached as detached
from unit_fast.capture import capture
from unit_fast.fingerprint import fingerprint
from unit_fast.fusion.gather_on_one_device import gather_on_one_device, make_on
from unit_fast.fusion.remove_identities import remove_identities

_aten = torch.ops.aten


class Normalised(nn.Module):
    """Brings its constants to the input, as models do that normalise it themselves, and picks channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.order = torch.tensor([2, 1, 0])  # no buffer: .to() leaves it where it is

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, H, W)
        mean = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1).to(x.device)
        return self.conv((x[:, self.order] - mean) + torch.arange(x.shape[-1], device=x.device).to(x.dtype))


class Spread(nn.Module):
    """Weights on two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).to("meta"))


def traced(model: nn.Module, device: str, *size: int) -> fx.GraphModule:
    """The graph as torch.export gives it, without what it asserts."""
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model.eval(), (torch.randn(size, device=device),), dynamic_shapes=(batch,))
    module = detached(program.run_decompositions({}).module())
    remove_identities(module)
    return module


def operators(module: fx.GraphModule) -> Counter:
    return Counter(node.target for node in module.graph.nodes if node.op == "call_function")


def devices(module: fx.GraphModule) -> set[str]:
    made = {node.kwargs["device"] for node in module.graph.nodes if "device" in node.kwargs}
    held = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    return {device.type for device in made | held if device is not None}


def test_nothing_is_moved_and_everything_is_on_the_device_of_the_weights():
    module = traced(Normalised().to("meta"), "meta", 2, 3, 4, 4)
    assert devices(module) == {"cpu", "meta"}
    assert gather_on_one_device(module) == 1
    module.recompile()
    assert devices(module) == {"meta"}
    assert operators(module)[_aten._to_copy.default] == 1  # the whole numbers become floating ones
    assert module(torch.randn(5, 3, 4, 4, device="meta")).shape == (5, 4, 4, 4)


def test_bounds_fit_whatever_the_device_they_were_fitted_on():
    def graph_on(device: str) -> str:
        module = traced(Normalised().to(device), device, 2, 3, 4, 4)
        gather_on_one_device(module)
        return fingerprint(module.to_empty(device="cpu")).graph  # a tensor without memory has no fingerprint

    assert graph_on("cpu") == graph_on("meta")


def test_a_graph_that_is_moved_makes_its_tensors_where_it_is():
    captured = capture(Normalised(), torch.randn(2, 3, 4, 4))
    make_on(captured.to("meta"), torch.device("meta"))
    assert captured(torch.randn(5, 3, 4, 4, device="meta")).shape == (5, 4, 4, 4)


def test_copies_that_change_the_layout_or_the_dtype_stay():
    class Copying(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(torch.float64).to(memory_format=torch.channels_last)

    module = traced(Copying(), "cpu", 2, 3, 4, 4)
    copies = operators(module)[_aten._to_copy.default]
    gather_on_one_device(module)
    assert operators(module)[_aten._to_copy.default] == copies >= 1
    y = module(torch.randn(2, 3, 4, 4))
    assert y.dtype == torch.float64
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_a_number_goes_along_but_for_one_that_is_filled_in():
    class Filling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x * torch.tensor(0.5)
            return x.index_put((x < 0,), torch.tensor(0.25))  # what x[x < 0] = 0.25 is on a GPU

    module = traced(Filling(), "meta", 2, 3)
    gather_on_one_device(module)
    (fill,) = (node for node in module.graph.nodes if node.target is _aten.index_put.default)
    product = next(node for node in module.graph.nodes if node.target is _aten.mul.Tensor)
    assert getattr(module, fill.args[2].target).device.type == "cpu"
    assert getattr(module, product.args[1].target).device.type == "meta"


def test_a_model_on_several_devices_stays_as_it_is():
    module = traced(Spread(), "cpu", 2, 3)
    before = str(module.graph)
    assert gather_on_one_device(module) == 0
    assert str(module.graph) == before
