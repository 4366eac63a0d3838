"""The "onnxruntime" backend: called as the model, the reference's numbers, made anew when the weights change."""

import copy

import pytest
import torch

import unit_fast as uf
from tests.networks import SmallResNet, randomised
from tests.runtime.networks import Nested, OneConv, bounds_of, images
from unit_fast.runtime import onnx_session
from unit_fast.runtime.onnx_session import OnnxSession

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def model():
    return randomised(SmallResNet())


@pytest.fixture(scope="module")
def bounds(model):
    return bounds_of(model, images(2))


@pytest.fixture(scope="module")
def fast(model, bounds):
    return uf.sanitize(model, bounds, images(1), backend="onnxruntime").warmup([1, 3])


@pytest.fixture(scope="module")
def eager(model, bounds):
    return uf.sanitize(model, bounds, images(1), backend="eager")


@pytest.mark.parametrize("batch", [0, 1, 2, 7, 33])
def test_equals_the_reference_at_any_batch(fast, eager, batch):
    torch.testing.assert_close(fast(images(batch)), eager(images(batch)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_equals_the_reference_in_any_mode_and_layout(fast, eager, mode):
    with mode():
        x = images(4).to(memory_format=torch.channels_last)
        torch.testing.assert_close(fast(x), eager(x), rtol=1e-4, atol=1e-4)


def test_nested_signatures_are_kept():
    model = Nested().eval()
    pair, mask = (torch.randn(3, 4), torch.randn(3, 4)), torch.rand(3, 6)
    example = {"pair": pair, "scale": 2.0, "mask": mask}
    fast, eager = (
        uf.sanitize(model, bounds_of(model, example), example, backend=backend) for backend in ("onnxruntime", "eager")
    )
    actual, expected = fast(**example), eager(**example)
    torch.testing.assert_close(actual["sum"], expected["sum"])
    torch.testing.assert_close(actual["parts"][1][0], expected["parts"][1][0])
    assert isinstance(actual["parts"][1], tuple)
    assert actual["parts"][1][1] is None


def test_changed_weights_are_exported_anew(fast, model):
    clone = copy.deepcopy(fast)
    with torch.no_grad():
        clone.graph_module.get_parameter("head.weight").zero_()
    torch.testing.assert_close(clone(images(4)), model.head.bias.expand(4, -1))
    assert not torch.equal(fast(images(4)), clone(images(4)))


def test_a_dtype_it_does_not_take_is_refused_before_and_after(fast, model, bounds):
    with pytest.raises(uf.BackendUnavailableError, match=r"float32 and this one is in torch\.float16"):
        uf.sanitize(model, bounds, images(1), backend="onnxruntime", dtype=torch.float16)
    with pytest.raises(uf.BackendUnavailableError, match=r"float32 and this one is in torch\.float64"):
        copy.deepcopy(fast).double()


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(onnx_session.importlib.util, "find_spec", lambda name: None if name != "onnx" else name)
    reason = OnnxSession.unavailable(torch.device("cpu"), torch.float32)
    assert reason == "onnxscript and onnxruntime cannot be imported; install unit_fast[onnxruntime]"


def test_what_disagrees_with_the_reference_is_not_served(monkeypatch):
    model = OneConv().eval()
    fast = uf.sanitize(model, bounds_of(model, images(1)), images(1), backend="onnxruntime")
    run = onnx_session.SessionGraph._run
    monkeypatch.setattr(onnx_session.SessionGraph, "_run", lambda self, inputs: [y + 0.01 for y in run(self, inputs)])
    with pytest.raises(uf.ParityError, match="ONNX Runtime does not compute"):
        fast(images(2))


def test_explain_tells_the_form_of_each_clamp(fast):
    text = fast.explain()
    assert "blocks.0.relu_1" in text
    assert "ONNX Runtime" in text
    assert "min after the activation" in text
