"""The "onnxruntime" backend: called as the model, the reference's numbers, made anew when the weights change."""

import copy

import pytest
import torch

import unit_fast as uf
from tests.networks import SmallResNet, randomised
from tests.runtime.networks import Nested, OneConv, bounds_of, images
from unit_fast.runtime import onnx_session
from unit_fast.runtime.automatic import Automatic, FallbackWarning
from unit_fast.runtime.compiled import Compiled
from unit_fast.runtime.onnx_session import OnnxSession

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def model():
    return randomised(SmallResNet())


@pytest.fixture(scope="module")
def bounds(model):
    return bounds_of(model, images(2), most=0.6)


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
        fast.double()
    assert fast(images(3)).dtype == torch.float32  # and is as it was


@pytest.mark.parametrize("backend", ["onnxruntime", "auto"])
def test_without_a_temporary_folder_it_says_so_and_auto_goes_on(model, bounds, monkeypatch, backend):
    def none(**_):
        raise FileNotFoundError("No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(onnx_session.tempfile, "TemporaryDirectory", none)
    monkeypatch.setattr(Automatic, "candidates", {"onnxruntime": OnnxSession})
    monkeypatch.setattr(Compiled, "unavailable", lambda *_: None)
    fast = uf.sanitize(model, bounds, images(1), backend=backend)
    message = "No usable temporary directory.*point TMPDIR"
    if backend == "auto":
        with pytest.warns(FallbackWarning, match=message):
            fast.warmup([2])
        assert fast(images(2)).shape == (2, 5)
    else:
        with pytest.raises(uf.BackendUnavailableError, match=message):
            fast.warmup([2])


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


@pytest.fixture(scope="module")
def quantised(model, bounds):
    return uf.sanitize(model, bounds, images(4), dtype="int8", calibration_data=images(256).split(64)).warmup([1, 3])


def test_int8_predicts_as_the_reference_and_is_no_copy_of_it(quantised, eager):
    x = images(200, seed=7)
    actual, expected = quantised(x), eager(x)
    assert actual.dtype == torch.float32
    assert (actual.argmax(1) == expected.argmax(1)).float().mean() > 0.9
    assert 1e-3 < (actual - expected).abs().max() / expected.abs().max() < 0.2


def test_int8_is_monitored_in_float32(quantised, eager, monkeypatch):
    x = images(4)
    monkeypatch.setattr(quantised._runner(), "_counter", eager._runner())
    torch.testing.assert_close(quantised.monitor(x)[1], eager.monitor(x)[1])


def test_int8_is_copied_whole_and_refuses_other_weights(quantised):
    clone = copy.deepcopy(quantised)
    assert torch.equal(clone.to("cpu").float()(images(2)), quantised(images(2)))
    with torch.no_grad():
        clone.graph_module.get_parameter("head.weight").zero_()
    with pytest.raises(uf.UnitFastError, match="weights have changed, and int8 was fitted to the old ones"):
        clone(images(2))
    with pytest.raises(uf.UnitFastError, match="weights have changed"):
        copy.deepcopy(clone)(images(2))


def test_int8_wants_samples_and_its_own_backend(model, bounds):
    with pytest.raises(uf.DataError, match='dtype="int8" needs calibration_data'):
        uf.sanitize(model, bounds, images(1), dtype="int8")
    with pytest.raises(uf.BackendUnavailableError, match=r"int8.*runs by ONNX Runtime"):
        uf.sanitize(model, bounds, images(1), "compile", "int8", calibration_data=[images(256)])
    with pytest.raises(uf.DataError, match='calibration_data serves dtype="int8" only'):
        uf.sanitize(model, bounds, images(1), calibration_data=[images(256)])
