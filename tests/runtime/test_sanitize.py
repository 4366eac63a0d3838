"""sanitize(): a drop-in that computes the clamped model, on every backend, and says why when it cannot."""

import copy
import shutil
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unit_fast as uf
from tests.networks import ResidualBlock, SmallResNet, randomised
from unit_fast.bounds import Bounds, bound_shape
from unit_fast.capture import capture
from unit_fast.runtime import backends, compiled, sessions
from unit_fast.sites import find_sites

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


def images(count: int, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def bounds_of(model: nn.Module, granularity: str = "neuron", size: int = 8) -> Bounds:
    captured = capture(model, images(2, size))
    sites = find_sites(captured)
    generator = torch.Generator().manual_seed(5)
    tensors = {site.name: 0.6 * torch.rand(bound_shape(site, granularity), generator=generator) for site in sites}
    return Bounds(tensors, sites, granularity, captured.meta["fingerprint"])


def clamped_by_hand(model: SmallResNet, bounds: Bounds, x: Tensor) -> Tensor:
    """The module's own layers with torch.minimum after each activation, in float64."""
    model = copy.deepcopy(model).double()
    limits = iter([bound.double() for bound in bounds.tensors.values()])
    y = torch.minimum(F.relu(model.stem(x.double())), next(limits))
    block: ResidualBlock
    for block in model.blocks:
        inner = torch.minimum(F.relu(block.bn1(block.conv1(y))), next(limits))
        y = torch.minimum(F.relu(block.bn2(block.conv2(inner)) + y), next(limits))
    return model.head(y.mean((2, 3))).float()


@pytest.fixture(scope="module")
def model():
    return randomised(SmallResNet())


@pytest.mark.parametrize("granularity", ["neuron", "channel", "tensor"])
@pytest.mark.parametrize("batch", [1, 5])
def test_eager_equals_the_clamped_model(model, granularity, batch):
    bounds = bounds_of(model, granularity)
    fast = uf.sanitize(model, bounds, images(1), backend="eager")
    x = images(batch)
    torch.testing.assert_close(fast(x), clamped_by_hand(model, bounds, x), rtol=1e-5, atol=1e-5)
    assert (fast(x) - model(x)).abs().max() > 1e-2, "the bounds must bind for the test to mean anything"


@needs_compiler
@pytest.mark.slow
def test_compile_equals_eager_after_warmup_at_any_batch(model):
    bounds = bounds_of(model)
    fast = uf.sanitize(model, bounds, example_input=images(1), backend="compile").warmup([1, 4])
    for batch in (1, 4):
        x = images(batch)
        torch.testing.assert_close(fast(x), clamped_by_hand(model, bounds, x), rtol=1e-4, atol=1e-5)
    clone = copy.deepcopy(fast)
    with torch.no_grad():
        clone.graph_module.get_parameter("head.weight").zero_()
    torch.testing.assert_close(clone(images(4)), model.head.bias.expand(4, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(fast(images(4)), clamped_by_hand(model, bounds, images(4)), rtol=1e-4, atol=1e-5)


def test_eager_passes_gradients_to_the_input(model):
    fast = uf.sanitize(model, bounds_of(model), images(1), backend="eager")
    x = images(3).requires_grad_()
    fast(x).sum().backward()
    expected = images(3).requires_grad_()
    clamped_by_hand(model, bounds_of(model), expected).sum().backward()
    torch.testing.assert_close(x.grad, expected.grad, rtol=1e-4, atol=1e-5)


def test_the_model_is_left_alone(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    uf.sanitize(model, bounds_of(model), images(1), backend="eager", dtype=torch.float16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)])
def test_dtype_casts_weights_bounds_and_inputs(model, dtype, tolerance):
    bounds = bounds_of(model)
    fast = uf.sanitize(model, bounds, images(1), backend="eager", dtype=dtype)
    y = fast(images(4))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), clamped_by_hand(model, bounds, images(4)), rtol=tolerance, atol=tolerance)


def test_state_dict_round_trip(model):
    bounds = bounds_of(model)
    fast = uf.sanitize(model, bounds, images(1), backend="eager")
    other = copy.deepcopy(fast)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    other.load_state_dict(fast.state_dict())
    torch.testing.assert_close(other(images(3)), fast(images(3)), rtol=0, atol=0)


def test_threads_share_one_module(model):
    fast = uf.sanitize(model, bounds_of(model), images(1), backend="eager")
    expected = {size: fast(images(size)) for size in range(1, 9)}
    wrong: list[int] = []

    def serve(size: int) -> None:
        with torch.inference_mode():
            for _ in range(5):
                if not torch.equal(fast(images(size)), expected[size]):
                    wrong.append(size)

    threads = [threading.Thread(target=serve, args=(size,)) for size in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.head.weight.mul_(1.01), "head.weight has other values"),
        (lambda model: model.blocks[0].bn1.running_mean.add_(1.0), "blocks.0.bn1.running_mean has other values"),
    ],
    ids=["a weight", "a statistic"],
)
def test_bounds_go_onto_no_other_model(model, change, message):
    bounds = bounds_of(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        change(other)
    with pytest.raises(uf.BoundsMismatchError, match=message):
        uf.sanitize(other, bounds, images(1), backend="eager")


@pytest.mark.parametrize("bounds", ["bounds.safetensors", {"relu": torch.ones(())}, None])
def test_what_is_no_bounds_is_refused(model, bounds):
    with pytest.raises(uf.BoundsMismatchError, match=r"expected unit_fast\.Bounds"):
        uf.sanitize(model, bounds, images(1), backend="eager")


def test_neuron_bounds_refuse_another_image_size(model):
    with pytest.raises(uf.BoundsMismatchError, match=r"site relu has activations \(8, 12, 12\).*\(8, 8, 8\)"):
        uf.sanitize(model, bounds_of(model, "neuron"), images(1, size=12), backend="eager")


def test_channel_bounds_take_another_image_size(model):
    bounds = bounds_of(model, "channel")
    x = images(3, size=12)
    fast = uf.sanitize(model, bounds, x, backend="eager")
    torch.testing.assert_close(fast(x), clamped_by_hand(model, bounds, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["triton", "tensorrt"])
def test_a_named_backend_that_cannot_run_raises(model, backend):
    with pytest.raises(uf.BackendUnavailableError, match=backend):
        uf.sanitize(model, bounds_of(model), images(1), backend=backend)


def test_auto_falls_back_and_says_why(model, monkeypatch):
    monkeypatch.setattr(compiled.shutil, "which", lambda _: None)
    monkeypatch.setattr(sessions.importlib.util, "find_spec", lambda _: None)
    with pytest.warns(backends.FallbackWarning, match=r"needs a C\+\+ compiler.*install unit_fast\[onnxruntime\]"):
        fast = uf.sanitize(model, bounds_of(model), images(1))
    assert fast.backend == "eager"


@needs_compiler
def test_auto_takes_compile_where_it_can(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert uf.sanitize(model, bounds_of(model), images(1)).backend in ("auto", "compile")


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda x: (x > 0).to(x.dtype), id="a mask"),
        pytest.param(lambda x: torch.zeros(x.shape[0], 1, 8, 8, dtype=x.dtype), id="zeros"),
        pytest.param(lambda x: torch.softmax(x, 1, dtype=torch.float32).to(x.dtype), id="float32 in between"),
    ],
)
def test_what_a_model_makes_in_the_dtype_of_its_input_follows_the_chosen_one(made):
    class Making(SmallResNet):
        def forward(self, x):
            return super().forward(x + made(x))

    model = randomised(Making())
    bounds = bounds_of(model)
    expected = uf.sanitize(model, bounds, images(1), backend="eager")(images(3))
    half = uf.sanitize(model, bounds, images(1), backend="eager", dtype=torch.float16)
    torch.testing.assert_close(half(images(3)).float(), expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(half.float()(images(3)), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_other_dtypes_are_refused(model, dtype):
    with pytest.raises(uf.UnitFastError, match="expected a floating-point type"):
        uf.sanitize(model, bounds_of(model), images(1), backend="eager", dtype=dtype)


def test_warmup_refuses_batches_of_none(model):
    with pytest.raises(uf.UnitFastError, match="batch size 0"):
        uf.sanitize(model, bounds_of(model), images(1), backend="eager").warmup([0])


def test_a_model_that_changes_afterwards_changes_nothing():
    model = randomised(SmallResNet())
    fast = uf.sanitize(model, bounds_of(model), images(1), backend="eager")
    expected = fast(images(3))
    with torch.no_grad():
        for tensor in model.state_dict().values():  # layers with a BatchNorm and layers without
            tensor.zero_()
    assert torch.equal(fast(images(3)), expected)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def test_what_the_model_shares_stays_shared():
    model, x = Tied().eval(), torch.randn(2, 4)
    captured = capture(model, x)
    sites = find_sites(captured)
    bounds = Bounds({"relu": torch.ones(())}, sites, "tensor", captured.meta["fingerprint"])
    fast = uf.sanitize(model, bounds, x, backend="eager")
    places = {tensor.data_ptr() for name, tensor in fast.state_dict().items() if name.endswith("weight")}
    assert len(places) == 1
    assert places.isdisjoint(tensor.data_ptr() for tensor in model.state_dict().values())
