"""``dtype="int8"``: fitted once, run by either runtime, held to what the file means."""

import copy
import re

import pytest
import torch

import unit_fast as uf
from tests.runtime.networks import images
from unit_fast.export import pipeline
from unit_fast.export.quantization import verification
from unit_fast.runtime import exported
from unit_fast.runtime.sessions import OnnxSession, OpenVinoSession

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")


def sanitised_in_int8(model, bounds, backend):
    data = images(256).split(64)
    return uf.sanitize(model, bounds, images(4), backend, "int8", calibration_data=data).warmup([1, 3])


@pytest.fixture(scope="module", params=["onnxruntime", "openvino", "auto"])
def quantised(request, model, bounds):
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    return sanitised_in_int8(model, bounds, request.param)


def test_it_predicts_as_the_reference_and_is_no_copy_of_it(quantised, eager):
    x = images(200, seed=7)
    actual, expected = quantised(x), eager(x)
    assert actual.dtype == torch.float32
    assert (actual.argmax(1) == expected.argmax(1)).float().mean() > 0.9
    assert 1e-3 < (actual - expected).abs().max() / expected.abs().max() < 0.2


@pytest.mark.parametrize(("bits", "largest"), [(7, 64), (8, 128)])
def test_weights_are_as_wide_as_the_processor_here_takes(model, bounds, monkeypatch, bits, largest):
    written = []
    export = pipeline.export_graph

    def kept(*arguments):
        report = export(*arguments)
        tensors = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(report.path).graph.initializer]
        written.append(
            max(abs(tensor.astype(int)).max() for tensor in tensors if tensor.dtype == "int8" and tensor.ndim > 1)
        )
        return report

    monkeypatch.setattr(pipeline, "export_graph", kept)
    monkeypatch.setattr(exported, "weight_bits", lambda: bits)
    monkeypatch.setattr(verification, "_check_kernels", lambda *_: None)  # 8 bits may overflow where this runs
    uf.sanitize(model, bounds, images(4), "onnxruntime", "int8", calibration_data=images(64).split(32))
    assert largest / 2 < written[-1] <= largest


def test_it_is_monitored_in_float32(quantised, eager, monkeypatch):
    x, runner = images(4), quantised._runner()
    session = runner._runner(runner._first) if quantised.backend == "auto" else runner
    monkeypatch.setattr(session, "_counter", eager._runner())
    torch.testing.assert_close(quantised.monitor(x)[1], eager.monitor(x)[1])


def test_it_is_copied_whole_and_refuses_other_weights(quantised):
    clone = copy.deepcopy(quantised)
    assert torch.equal(clone.to("cpu").float()(images(2)), quantised(images(2)))
    assert clone.backend == quantised.backend
    with torch.no_grad():
        clone.graph_module.get_parameter("head.weight").zero_()
    with pytest.raises(uf.UnitFastError, match="weights have changed, and int8 was fitted to the old ones"):
        clone(images(2))
    with pytest.raises(uf.UnitFastError, match="weights have changed"):
        copy.deepcopy(clone)(images(2))


def test_auto_measures_the_runtimes_that_are_there(model, bounds, monkeypatch):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    fast = sanitised_in_int8(model, bounds, "auto")
    assert re.search(r"batch 1: \w+ [\d.]+ ms against \w+ [\d.]+ ms; batch 3: ", fast.explain())
    monkeypatch.setattr(OpenVinoSession, "unavailable", lambda *_: "not installed")
    fast = sanitised_in_int8(model, bounds, "auto")
    assert isinstance(fast._runner(), OnnxSession)


@pytest.mark.parametrize("quantised", ["onnxruntime", "openvino"], indirect=True)
def test_what_is_not_what_the_file_means_is_not_served(quantised, monkeypatch):
    session = quantised._runner()._output._session
    computed = session.outputs
    monkeypatch.setattr(session, "outputs", lambda inputs: [1.3 * value for value in computed(inputs)])
    with pytest.raises(uf.ParityError, match=r"noise of 30\.\d% over what the int8 file means"):
        quantised(images(5))


def test_it_wants_samples_and_its_own_backends(model, bounds, monkeypatch):
    with pytest.raises(uf.DataError, match='dtype="int8" needs calibration_data'):
        uf.sanitize(model, bounds, images(1), dtype="int8")
    with pytest.raises(uf.BackendUnavailableError, match="runs by onnxruntime or openvino; got backend='compile'"):
        uf.sanitize(model, bounds, images(1), "compile", "int8", calibration_data=[images(256)])
    with pytest.raises(uf.DataError, match='calibration_data serves dtype="int8" only'):
        uf.sanitize(model, bounds, images(1), calibration_data=[images(256)])
    monkeypatch.setattr(OnnxSession, "unavailable", lambda *_: "not installed")
    monkeypatch.setattr(OpenVinoSession, "unavailable", lambda *_: None)
    with pytest.raises(uf.BackendUnavailableError, match="fitted in ONNX Runtime: not installed"):
        uf.sanitize(model, bounds, images(1), "openvino", "int8", calibration_data=[images(256)])
