"""Sites: which outputs are bounded, how they are named, and what inserting and exposing them does."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unit_fast as uf
from tests.networks import PlainVGG, SmallResNet, randomised
from unit_fast.capture import capture
from unit_fast.fusion.rewrite import copy_graph
from unit_fast.sites import bound_path, clamp_bound, expose_sites, find_sites, insert_bounds


def images(count: int, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module")
def resnet():
    return randomised(SmallResNet())


@pytest.fixture(scope="module")
def captured(resnet):
    return capture(resnet, images(2))


def test_sites_are_named_after_modules_in_running_order(captured):
    sites = find_sites(captured)
    assert [site.name for site in sites] == [
        "relu",
        "blocks.0.relu",
        "blocks.0.relu_1",
        "blocks.1.relu",
        "blocks.1.relu_1",
    ]
    assert {site.shape for site in sites} == {(8, 8, 8)}
    assert {(site.channel_axis, site.activation) for site in sites} == {(1, "relu")}


def test_sequential_activations_have_their_modules_names():
    sites = find_sites(capture(PlainVGG(), images(2)))
    assert [(site.name, site.shape) for site in sites] == [("features.2", (8, 8, 8)), ("features.6", (16, 4, 4))]


ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "softplus": F.softplus,
    "glu": lambda x: F.glu(x, 1),
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "relu by clamp": lambda x: x.clamp(min=0),
    "relu6 by clamp": lambda x: x.clamp(0, 6),
    "silu written out": lambda x: x * torch.sigmoid(x),
    "silu written out, gate first": lambda x: torch.sigmoid(x) * x,
    "mish written out": lambda x: x * torch.tanh(F.softplus(x)),
    "gelu as GPT-2 has it": lambda x: 0.5 * x * (1.0 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3.0)))),
    "gelu with fewer products": lambda x: 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))),
    "gelu by erf": lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "gelu halved last": lambda x: x * (1.0 + torch.erf(x / math.sqrt(2.0))) * 0.5,
    "quick_gelu as CLIP has it": lambda x: x * torch.sigmoid(1.702 * x),
    "relu6 by clip": lambda x: torch.clip(x, 0, 6),
    "relu by maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "relu by max with a tensor": lambda x: torch.max(x, x.new_zeros(())),
    "relu by where": lambda x: torch.where(x > 0, x, 0.0),
    "relu by where with zeros converted": lambda x: torch.where(x > 0, x, torch.zeros(x.shape).double().type_as(x)),
    "leaky_relu by where with ones": lambda x: torch.where(x > 0, x, 0.1 * torch.ones_like(x) * x),
    "relu by a mask": lambda x: x * (x > 0).float(),
    "relu by masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "relu by assignment": lambda x: assigned(x),
    "relu by absolute values": lambda x: (x + x.abs()) / 2,
    "relu of the negative": lambda x: -x.clamp(max=0),
    "leaky_relu by maximum": lambda x: torch.maximum(x, 0.1 * x),
    "leaky_relu by where": lambda x: torch.where(x < 0, 0.1 * x, x),
    "leaky_relu by two slopes": lambda x: 0.55 * x + 0.45 * x.abs(),
    "leaky_relu around a relu": lambda x: 0.9 * F.relu(x) + 0.1 * x,
    "elu by where": lambda x: torch.where(x > 0, x, torch.expm1(x)),
    "softplus by its formula": lambda x: torch.log(1 + torch.exp(x)),
    "silu by division": lambda x: x / (1 + torch.exp(-x)),
    "silu by tanh": lambda x: 0.5 * x * (1 + torch.tanh(x / 2)),
    "silu in float64": lambda x: (x.double() * torch.sigmoid(x.double())).float(),
    "quick_gelu by division": lambda x: x * torch.sigmoid(x / 0.5875),
    "mish by log1p": lambda x: x * torch.tanh(torch.log1p(torch.exp(x))),
    "gelu with its gate made first": lambda x: x * (0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))),
    "gelu halved by division": lambda x: x / 2.0 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "gelu without brackets": lambda x: 0.5 * x + 0.5 * x * torch.erf(x / math.sqrt(2.0)),
    "gelu by erfc": lambda x: 0.5 * x * torch.erfc(-x / math.sqrt(2.0)),
    "gelu by ndtr": lambda x: x * torch.special.ndtr(x),
    "gelu by square": lambda x: 0.5 * x * (1.0 + torch.tanh(0.7978845608 * x * (1.0 + 0.044715 * x.square()))),
    "gelu by its constant's root": lambda x: x * 0.5 * (1.0 + torch.erf(x / torch.sqrt(torch.tensor(2.0)))),
    "hardswish as MobileNetV3 has it": lambda x: x * F.relu6(x + 3.0) / 6.0,
    "hardswish by its gate": lambda x: x * (F.relu6(x + 3.0) / 6.0),
    "hardswish by clamp": lambda x: (x / 6.0 + 0.5).clamp(0.0, 1.0) * x,
    "maximum of halves": lambda x: torch.max(*x.chunk(2, 1)),
    "glu written out": lambda x: x[:, :2] * torch.sigmoid(x[:, 2:]),
    "glu written out by index": lambda x: (lambda x: x[:, 0] * torch.sigmoid(x[:, 1]))(x.unflatten(1, (2, 2))),
    "glu written out by chunk": lambda x: (lambda value, gate: torch.sigmoid(gate) * value)(*x.chunk(2, 1)),
}


def assigned(x: Tensor) -> Tensor:
    x = x.clone()
    x[x < 0] = 0.0
    return x


class Activated(nn.Module):
    def __init__(self, activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x * 1.5).flatten(1)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nonlinearities_are_sites(name):
    (site,) = find_sites(capture(Activated(ACTIVATIONS[name]), torch.randn(2, 4, 3, 3)))
    assert site.activation == name.split()[0]


@pytest.mark.parametrize(
    "activation",
    [
        *(torch.sigmoid, torch.tanh, F.hardsigmoid, lambda x: F.softmax(x, 1), lambda x: x.clamp(max=1.0)),
        lambda x: x * (1.0 + torch.tanh(x.mean(1, keepdim=True))),
        lambda x: x * torch.sigmoid(1.702 * x.flip(1)),
        lambda x: x * (F.relu6(x.mean(1, keepdim=True) + 3.0) / 6.0),
        lambda x: x * (x.mean(1, keepdim=True) + 3.0).clamp(0.0, 6.0) * (1 / 6),
        lambda x: 3.0 * x - 1.0,
        lambda x: (x - x.mean(1, keepdim=True)) * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt(),
        lambda x: x.exp() / x.exp().sum(1, keepdim=True),
        lambda x: x / x.abs().amax(1, keepdim=True),
        lambda x: x / torch.where((norm := x.norm(dim=1, keepdim=True)) > 1e-6, norm, 1e-6),
        lambda x: torch.maximum(x, torch.tensor(torch.finfo(torch.float32).min)),
    ],
    ids=[
        *("sigmoid", "tanh", "hardsigmoid", "softmax", "clamp from above", "gate by a mean", "gate by another"),
        *("hardsigmoid written out", "hardsigmoid by clamp", "line", "norm", "softmax written out", "largest"),
        *("divisor kept from zero", "lowest number"),
    ],
)
def test_bounded_gates_are_no_sites(activation):
    with pytest.raises(uf.CaptureError, match="no site"):
        find_sites(capture(Activated(activation), torch.randn(2, 4, 3, 3)))


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "gelu halved last"])
def test_the_bound_holds_all_that_a_nonlinearity_puts_out(name):
    graph, x = capture(Activated(ACTIVATIONS[name]), torch.randn(2, 4, 3, 3)), 4 * torch.randn(5, 4, 3, 3)
    largest = graph(x).amax()
    (site,) = find_sites(graph)
    sanitised = insert_bounds(graph, {site.name: torch.tensor(0.2)})
    assert sanitised(x).amax() < largest, "the bound must bind for the test to mean anything"
    assert sanitised(100 * x).amax() == sanitised(x).amax(), "the output must not rise with the input"
    torch.testing.assert_close(insert_bounds(graph, {site.name: torch.tensor(math.inf)})(x), graph(x), rtol=0, atol=0)


SHRINKING = {
    "softshrink": lambda x: F.softshrink(x, 0.1),
    "hardshrink": F.hardshrink,
    "tanhshrink": F.tanhshrink,
    "written out": lambda x: torch.sign(x) * torch.max(x.abs() - 0.1, torch.zeros_like(x)),
}


@pytest.mark.parametrize("name", SHRINKING)
def test_shrinking_functions_are_sites_though_straight_far_out(name):
    model, x = Activated(SHRINKING[name]), 4 * torch.randn(5, 4, 3, 3)
    graph = capture(model, torch.randn(2, 4, 3, 3))
    (site,) = find_sites(graph)
    bounded = insert_bounds(graph, {site.name: torch.tensor(0.6)})
    torch.testing.assert_close(bounded(x), model(x).clamp(max=0.6))


class Learned(nn.Module):
    """Activations with parameters of their own, for 4 channels."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.slope = nn.Parameter(torch.tensor([0.5, 1.0, 2.0, 3.0]).view(1, 4, 1, 1))
        self.other = nn.Parameter(torch.tensor([-0.5, 0.2, 2.0, 0.0]).view(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "swish":
            return x * torch.sigmoid(self.slope * x)
        if self.kind == "swish, expanded":
            return x * torch.sigmoid(self.slope.expand_as(x) * x)
        if self.kind == "swish, repeated":
            return x * torch.sigmoid(self.slope.repeat(x.shape[0], 1, *x.shape[2:]) * x)
        if self.kind == "prelu":
            return torch.where(x > 0, x, self.other * x)
        if self.kind == "prelu, expanded":
            return torch.where(x > 0, x, self.other.expand(x.shape) * x)
        if self.kind == "acon":
            difference = (self.slope - self.other) * x
            return difference * torch.sigmoid(difference) + self.other * x
        return torch.max(x, self.other)


@pytest.mark.parametrize(
    "kind", ["swish", "swish, expanded", "swish, repeated", "prelu", "prelu, expanded", "acon", "threshold"]
)
def test_nonlinearities_with_learned_parameters_are_sites(kind):
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), Learned(kind)), images(5)
    graph = capture(model, images(2))
    (site,) = find_sites(graph)
    assert site.name.startswith("1.")
    assert site.shape == (4, 8, 8)
    bounded = insert_bounds(graph, {site.name: torch.tensor(0.1)})
    torch.testing.assert_close(bounded(x), model(x).clamp(max=0.1))


def test_a_gate_within_an_activation_has_no_bound_of_its_own():
    class HardSwish(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.ReLU6()

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gate(x + 3.0)

    (site,) = find_sites(capture(nn.Sequential(nn.Conv2d(3, 4, 1), HardSwish()), images(2)))
    assert (site.name, site.activation) == ("1.hardswish", "hardswish")


@pytest.mark.parametrize(
    "divide",
    [
        lambda x: F.normalize(x, dim=1),
        lambda x: x / x.norm(dim=1, keepdim=True).clamp(min=1e-6),
        lambda x: x * x.square().sum(1, keepdim=True).clamp_min(1e-6).rsqrt(),
        lambda x: x * x.abs().amax(1, keepdim=True).clamp_min(1e-6).reciprocal(),
    ],
    ids=["F.normalize", "by hand", "rsqrt", "reciprocal"],
)
def test_divisors_kept_from_zero_are_no_sites(divide):
    with pytest.raises(uf.CaptureError, match="no site"):
        find_sites(capture(Activated(divide), torch.randn(2, 4, 3, 3)))


@pytest.mark.parametrize(
    "activation",
    [lambda x: x.clamp_min(1e-6) / 2.0, lambda x: (y := x.clamp_min(1e-6)) / (1 + y), lambda x: x.clamp_min(0.5) + 1],
    ids=["divided", "both", "no division"],
)
def test_a_lower_limit_that_is_used_otherwise_is_a_site(activation):
    (site,) = find_sites(capture(Activated(activation), torch.randn(2, 4, 3, 3)))
    assert site.activation == "threshold"


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.up, self.down = (
            nn.Conv2d(3, 6, 2, 2),
            nn.LayerNorm(6),
            nn.Linear(6, 12),
            nn.Linear(12, 6),
        )
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return (tokens + self.down(self.act(self.up(self.norm(tokens))))).mean(1)


def test_channel_axis_is_last_after_a_linear_layer():
    (site,) = find_sites(capture(Tokens(), images(2)))
    assert (site.name, site.shape, site.channel_axis, site.activation) == ("act", (16, 12), -1, "gelu")


@pytest.mark.parametrize("order", [("relu", "relu", "relu_1"), ("relu_1", "relu", "relu")], ids=" ".join)
def test_a_second_use_does_not_take_the_name_of_another_module(order):
    class Numbered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.relu, self.relu_1 = nn.Linear(4, 4), nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            for name in order:
                x = getattr(self, name)(self.linear(x))
            return x

    graph = capture(Numbered(), torch.randn(2, 4))
    sites = find_sites(graph)
    assert sorted(site.name for site in sites) == ["relu", "relu_1", "relu_2"]
    assert sites[order.index("relu_1")].name == "relu_1"
    sanitised = insert_bounds(graph, {site.name: torch.tensor(0.1) for site in sites})
    assert [node.target for node in sanitised.graph.nodes].count(clamp_bound) == 3


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ("blocks.*", None, 4),
        (["relu", "blocks.1.*"], None, 3),
        (None, "*_1", 3),
        ("blocks.*", ["blocks.0.*"], 2),
    ],
)
def test_filters(captured, include, exclude, expected):
    assert len(find_sites(captured, include, exclude)) == expected


def test_filters_that_leave_nothing_name_the_sites(captured):
    with pytest.raises(uf.CaptureError, match=r"leave no site; the sites are: relu, blocks\.0\.relu"):
        find_sites(captured, include="layer1.*")
    with pytest.raises(
        uf.CaptureError, match=r"'block\.\*' in include or exclude matches no site; the sites are: relu"
    ):
        find_sites(captured, exclude=["*.relu", "block.*"])


def sanitised_by_hand(model: SmallResNet, x: Tensor, bound: float) -> Tensor:
    def clamp(value: Tensor) -> Tensor:
        return value.clamp(max=bound)

    y = clamp(F.relu(model.stem(x)))
    for block in model.blocks:
        inner = clamp(F.relu(block.bn1(block.conv1(y))))
        y = clamp(F.relu(block.bn2(block.conv2(inner)) + y))
    return model.head(y.mean((2, 3)))


def test_inserted_bounds_clamp_every_use_of_the_activation(resnet, captured):
    x = images(5)
    sanitised = insert_bounds(captured, {site.name: torch.tensor(0.4) for site in find_sites(captured)})
    torch.testing.assert_close(sanitised(x), sanitised_by_hand(resnet, x, 0.4), rtol=1e-5, atol=1e-5)
    assert (sanitised(x) - captured(x)).abs().max() > 1e-2, "the bounds must bind for the test to mean anything"


def test_insert_bounds_leaves_its_input_alone_and_keeps_the_sites(captured):
    before = captured.code
    sanitised = insert_bounds(captured, {"blocks.0.relu": torch.tensor(0.4)})
    assert captured.code == before
    assert [node.target for node in sanitised.graph.nodes].count(clamp_bound) == 1
    assert [site.name for site in find_sites(sanitised)] == [site.name for site in find_sites(captured)]
    assert sanitised.get_buffer(bound_path("blocks.0.relu")) == 0.4
    assert sanitised.meta["fingerprint"] == captured.meta["fingerprint"]


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"layer9": torch.tensor(1.0)}, r"no site layer9; the sites are: relu"),
        ({"relu": torch.ones(8, 4, 4)}, r"site relu has the shape \(8, 4, 4\).*\(8, 8, 8\)"),
        ({"relu": torch.ones(1, 8, 8, 8)}, r"site relu has the shape \(1, 8, 8, 8\)"),
    ],
    ids=["unknown site", "other size", "with a batch dimension"],
)
def test_bounds_that_do_not_fit_are_refused(captured, bounds, message):
    with pytest.raises(uf.CaptureError, match=message):
        insert_bounds(captured, bounds)


def test_exposed_sites_are_what_the_rest_of_the_model_sees(resnet, captured):
    x = images(5)
    sites = find_sites(captured)
    output, activations = expose_sites(captured, sites)(x)
    torch.testing.assert_close(output, captured(x), rtol=0, atol=0)
    torch.testing.assert_close(activations["relu"], F.relu(resnet.stem(x)), rtol=1e-5, atol=1e-5)
    bounded = insert_bounds(captured, {"relu": torch.tensor(0.4)})
    _, clamped = expose_sites(bounded, sites)(x)
    torch.testing.assert_close(clamped["relu"], activations["relu"].clamp(max=0.4), rtol=0, atol=0)


def test_a_copy_shares_tensors_but_not_the_graph(captured):
    copied = copy_graph(captured)
    assert copied.graph is not captured.graph
    assert copied.get_parameter("head.weight").data_ptr() == captured.get_parameter("head.weight").data_ptr()
    torch.testing.assert_close(copied(images(3)), captured(images(3)), rtol=0, atol=0)
