"""The rules of folding one by one: what folds without a multiplication, what needs one, and what stays as it is."""

import math
import re
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tests.export.models import bounds_of, make
from unit_fast.bounds import Granularity
from unit_fast.capture import capture
from unit_fast.errors import ParityError
from unit_fast.export import ExportError
from unit_fast.export.flat import FlatGraph, evaluate_sites, flatten_graph
from unit_fast.export.folding import Folding, FoldResult, fold, prove_folding, wanted
from unit_fast.export.folding.fold import SiteFold
from unit_fast.export.forms import choose
from unit_fast.sites import clamp_bound, insert_bounds

_MUL = torch.ops.aten.mul.Tensor


class Net(nn.Module):
    """conv → relu → whatever is tested → conv."""

    def __init__(self, middle: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.skip, self.grouped = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 1, groups=2)
        self.up = nn.ConvTranspose2d(4, 6, 2, 2, groups=2)
        self.fc, self.norm = nn.Linear(4, 5), nn.LayerNorm(4)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 6, 6)
        return self.middle(self, torch.relu(self.first(x)))


def flat(model: nn.Module, x: Tensor, bounds: dict[str, Tensor]) -> FlatGraph:
    return flatten_graph(insert_bounds(capture(model, x), bounds), x)


@cache
def captured_net(middle: Callable[[Net, Tensor], Tensor]) -> tuple[fx.GraphModule, Tensor]:
    """``Net`` in float64, captured once for all tests, and its input."""
    torch.manual_seed(0)
    model, x = Net(middle).double().eval(), torch.randn(4, 3, 6, 6, dtype=torch.float64)
    return capture(model, x), x


def flat_model(name: str, granularity: Granularity) -> FlatGraph:
    """A network of :mod:`tests.export.models`, captured once for all tests, with bounds that bind."""
    captured, images = captured_model(name)
    return flatten_graph(insert_bounds(captured, dict(bounds_of(captured, images, granularity).items())), images)


@cache
def captured_model(name: str) -> tuple[fx.GraphModule, Tensor]:
    model, images = make(name)
    return capture(model, images), images


def folded(
    middle: Callable[[Net, Tensor], Tensor], settings: Folding | None = None, bound: Tensor | None = None
) -> tuple[FoldResult, int]:
    """The result for channel bounds, checked against the graph, and how many multiplications were inserted."""
    captured, x = captured_net(middle)
    bounds = dict(bounds_of(captured, x, "channel").items())
    if bound is not None:
        bounds[next(iter(bounds))] = bound.double().reshape(-1, 1, 1)
    graph = flatten_graph(insert_bounds(captured, bounds), x)
    result = fold(graph, settings)
    outputs, _, activations = evaluate_sites(graph, (x * 3,))
    found, _, scaled = evaluate_sites(result.graph, (x * 3,))
    torch.testing.assert_close(found, outputs, rtol=1e-9, atol=1e-12)
    for site, outcome in result.sites.items():
        scale = 1.0 if outcome.scale is None else outcome.scale
        torch.testing.assert_close(scaled[site] * scale, activations[site], rtol=1e-9, atol=1e-12)
    count = sum(node.target is _MUL for node in result.graph.module.graph.nodes)
    return result, count - sum(node.target is _MUL for node in graph.module.graph.nodes)


FREE = {
    "convolution": lambda net, y: net.second(y),
    "grouped": lambda net, y: net.grouped(y),
    "transposed": lambda net, y: net.up(y),
    "max-pool": lambda net, y: net.second(F.max_pool2d(y, 2)),
    "average-pool": lambda net, y: net.second(F.avg_pool2d(y, 2)),
    "adaptive-pool-and-linear": lambda net, y: net.fc(F.adaptive_avg_pool2d(y, 1).flatten(1)),
    "mean-and-linear": lambda net, y: net.fc(y.mean((2, 3))),
    "maximum-and-linear": lambda net, y: net.fc(y.amax((2, 3))),
    "padding": lambda net, y: net.second(F.pad(y, (1, 2, 0, 1))),
    "reflection": lambda net, y: net.second(F.pad(y, (1, 1, 1, 1), mode="reflect")),
    "nearest": lambda net, y: net.second(F.interpolate(y, scale_factor=2)),
    "bilinear": lambda net, y: net.second(F.interpolate(y, scale_factor=2, mode="bilinear")),
    "concatenation": lambda net, y: net.grouped(torch.cat([y[:, 2:], y[:, :2]], 1)),
    "shuffle": lambda net, y: net.second(y.reshape(y.shape[0], 2, 2, 6, 6).transpose(1, 2).flatten(1, 2)),
    "chunk": lambda net, y: net.second(torch.cat(y.chunk(2, 1)[::-1], 1)),
    "tokens-and-linear": lambda net, y: net.fc(y.flatten(2).transpose(1, 2)),
    "times-a-number": lambda net, y: net.second(y * 0.5),
    "gated": lambda net, y: net.second(y * torch.sigmoid(net.skip(y).mean((2, 3), keepdim=True))),
    "skip-by-convolution": lambda net, y: net.grouped(torch.relu(net.second(y) + net.skip(y))),
}


@pytest.mark.parametrize("consumer", FREE)
def test_these_consumers_take_up_the_scale(consumer: str) -> None:
    result, multiplications = folded(FREE[consumer])

    assert multiplications == 0
    assert all(outcome.folded for outcome in result.sites.values())


def identity(net: Net, y: Tensor) -> Tensor:
    return net.grouped(torch.relu(net.second(y) + y))


def test_an_identity_skip_costs_one_multiplication_of_the_sum_or_keeps_its_bounds() -> None:
    result, multiplications = folded(identity)
    kept, none = folded(identity, Folding(rescale=False))

    assert multiplications == 1
    assert [outcome.folded for outcome in result.sites.values()] == [True, True]
    assert none == 0
    assert [outcome.folded for outcome in kept.sites.values()] == [True, False]
    first, second = kept.sites.values()
    assert first.scale is not None
    assert second.scale is not None
    assert torch.equal(first.scale, second.scale)
    assert second.reason == "it is a residual sum, which would have to be multiplied"


LEFT = {
    "output": (lambda _, y: y, "output"),
    "layer-norm": (lambda net, y: net.norm(y.flatten(2).transpose(1, 2)), "layer_norm"),
    "shared-weights": (lambda net, y: net.second(net.second(y)), r"second \(conv2d\)"),
    "nonlinearity": (lambda _, y: torch.sigmoid(y), "sigmoid"),
}


@pytest.mark.parametrize("consumer", LEFT)
def test_a_site_whose_scale_would_be_multiplied_back_at_once_stays_as_it_is(consumer: str) -> None:
    middle, blamed = LEFT[consumer]

    result, multiplications = folded(middle)

    assert multiplications == 0
    (outcome, *_) = result.sites.values()
    assert not outcome.folded
    assert outcome.reason.startswith("its scale cannot be taken up by")
    assert re.search(blamed, outcome.reason)


def test_multiplying_back_after_pooling_is_worth_it() -> None:
    result, multiplications = folded(lambda net, y: net.norm(y.mean((2, 3))))

    assert multiplications == 1
    assert all(outcome.folded for outcome in result.sites.values())


class Shared(Net):
    """One convolution before two activations."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(torch.relu(y)) + self.skip(F.leaky_relu(y))


class SharedWeights(Net):
    """Two convolutions of the same weights before activations."""

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)) + torch.relu(self.first(x.flip(2))))


@pytest.mark.parametrize(
    ("net", "reason"), [(Shared, "is read by others too"), (SharedWeights, "are shared with another layer")]
)
def test_a_layer_that_others_depend_on_is_left_alone(net: type[Net], reason: str) -> None:
    torch.manual_seed(0)
    model, x = net(lambda _, y: y).eval(), torch.randn(2, 3, 6, 6)
    captured = capture(model, x)
    bounds = dict(bounds_of(captured, x, "channel").items())
    result = fold(flatten_graph(insert_bounds(captured, bounds), x))

    assert not any(outcome.folded for outcome in result.sites.values())
    assert reason in next(iter(result.sites.values())).reason


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1.0, 2.0, math.inf, 1.0], r"a bound is +inf"),
        ([1.0, 2.0, -1.0, 1.0], "a bound is negative"),
        ([1e-40, 1e-38, 0.0, 1e-35], "too small to divide by"),
        ([1.0, 1e35, 1.0, 1.0], "too large to multiply by"),
    ],
)
def test_bounds_that_cannot_be_divided_by_stay(values: list[float], reason: str) -> None:
    result, _ = folded(FREE["convolution"], bound=torch.tensor(values, dtype=torch.float64))

    (outcome,) = result.sites.values()
    assert not outcome.folded
    assert reason in outcome.reason


def test_a_bound_of_zero_leaves_an_activation_of_zero_and_a_scale_of_one() -> None:
    result, _ = folded(FREE["convolution"], bound=torch.tensor([0.0, 1.0, 2.0, 1e-40]))

    (outcome,) = result.sites.values()
    assert outcome.folded
    assert outcome.scale is not None
    assert outcome.scale.flatten().tolist() == [1.0, 1.0, 2.0, 1.0]
    _, _, activations = evaluate_sites(result.graph, (torch.randn(2, 3, 6, 6, dtype=torch.float64) * 9,))
    (activation,) = activations.values()
    assert (activation[:, [0, 3]] == 0).all()
    assert (activation[:, 1] == 1).any()


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_nan_is_refused(bad: float) -> None:
    with pytest.raises(ExportError, match=r"site relu holds .*calibrate again"):
        folded(FREE["convolution"], bound=torch.tensor([1.0, bad, 1.0, 1.0]))


def test_relu6_folds_by_the_smaller_of_its_limit_and_the_bound() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 2, 3)).eval()
    x = torch.randn(2, 3, 8, 8)
    graph = flat(model, x, {"1": torch.tensor([1.0, 9.0, math.inf, 0.5]).reshape(4, 1, 1)})

    result = fold(graph, Folding(limit=6.0))

    assert result.sites["1"].scale is not None
    assert torch.equal(result.sites["1"].scale.flatten() * 6, torch.tensor([1.0, 6.0, 6.0, 0.5], dtype=torch.float64))
    targets = [str(node.target) for node in result.graph.module.graph.nodes]
    assert "aten.relu.default" in targets
    (clamp,) = (node for node in result.graph.module.graph.nodes if node.target is clamp_bound)
    assert result.graph.module.get_buffer(str(clamp.args[1].target)).item() == 6.0


def test_neuron_bounds_fold_into_linear_layers_only() -> None:
    result = fold(flat_model("vgg", "neuron"))

    assert {site: outcome.folded for site, outcome in result.sites.items()} == {
        "features.2": False,
        "features.6": False,
        "classifier.2": True,
    }
    assert "differ from neuron to neuron" in result.sites["features.6"].reason


def test_only_the_sites_asked_for_are_folded_and_the_graph_stays() -> None:
    graph = flat_model("resnet", "tensor")
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}

    result = fold(graph, only=["relu"])

    assert [site for site, outcome in result.sites.items() if outcome.folded] == ["relu"]
    assert result.sites["blocks.0.relu"].reason == "not asked for"
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.module.state_dict().items())
    assert {*graph.module.state_dict()} == {*before}


def test_for_onnxruntime_tensor_bounds_are_folded_behind_sums_only() -> None:
    graph = flat_model("resnet", "tensor")

    result = wanted.fold_for(graph, choose("auto", "onnxruntime", "tensor"))

    assert [site for site, outcome in result.sites.items() if outcome.folded] == ["blocks.0.relu_1", "blocks.1.relu_1"]


def test_a_folding_that_changes_the_model_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = flat_model("small", "channel")
    choice = choose("folded", "generic", "channel")
    prove_folding(graph, choice)

    def wrong(graph: FlatGraph, choice: object) -> FoldResult:
        result = wanted.fold_for(graph, choice)  # type: ignore[arg-type]
        sites = {
            name: SiteFold(name, site.folded, site.reason, None if site.scale is None else site.scale * (1 + 1e-6))
            for name, site in result.sites.items()
        }
        return FoldResult(result.graph, sites)

    monkeypatch.setattr("unit_fast.export.folding.proof.fold_for", wrong)
    with pytest.raises(ParityError, match=r"site 1: folding changes it by"):
        prove_folding(graph, choice)


def test_weights_that_would_overflow_keep_their_site() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e20)
    x = torch.randn(2, 3, 8, 8)

    graph = flat(model, x, {"1": torch.full((4, 1, 1), 1e-25)})
    result = fold(graph)

    assert result.sites["1"].reason == "its weights would overflow"
    assert torch.equal(result.graph.module(x)[0], graph.module(x)[0])
