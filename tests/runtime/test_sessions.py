"""The backends that run an exported file: called as the model, the reference's numbers, made anew with the weights."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import unit_fast as uf
from tests.runtime.networks import Nested, OneConv, bounds_of, images
from unit_fast.errors import FallbackWarning
from unit_fast.export.session import OPTIMIZED_KEY
from unit_fast.runtime import automatic, exported, sessions
from unit_fast.runtime.sessions import OnnxSession, OpenVinoSession

SESSIONS = {session.target: session for session in (OnnxSession, OpenVinoSession)}
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=SESSIONS)
def backend(request):
    reason = SESSIONS[request.param].unavailable(CPU, torch.float32)
    return pytest.skip(reason) if reason is not None else request.param


@pytest.fixture(scope="module")
def fast(model, bounds, backend):
    return uf.sanitize(model, bounds, images(1), backend=backend).warmup([1, 3])


@pytest.mark.parametrize("batch", [0, 1, 2, 7, 33])
def test_equals_the_reference_at_any_batch(fast, eager, batch):
    torch.testing.assert_close(fast(images(batch)), eager(images(batch)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_equals_the_reference_in_any_mode_and_layout(fast, eager, mode):
    with mode():
        x = images(4).to(memory_format=torch.channels_last)
        torch.testing.assert_close(fast(x), eager(x), rtol=1e-4, atol=1e-4)


def test_nested_signatures_are_kept(backend):
    model = Nested().eval()
    pair, mask = (torch.randn(3, 4), torch.randn(3, 4)), torch.rand(3, 6)
    example = {"pair": pair, "scale": 2.0, "mask": mask}
    fast, eager = (uf.sanitize(model, bounds_of(model, example), example, backend=way) for way in (backend, "eager"))
    actual, expected = fast(**example), eager(**example)
    torch.testing.assert_close(actual["sum"], expected["sum"])
    torch.testing.assert_close(actual["parts"][1][0], expected["parts"][1][0])
    assert isinstance(actual["parts"][1], tuple)
    assert actual["parts"][1][1] is None


def test_onnxruntime_runs_the_graph_as_optimised_for_this_processor(model, bounds):
    if (reason := OnnxSession.unavailable(CPU, torch.float32)) is not None:
        pytest.skip(reason)
    fast = uf.sanitize(model, bounds, images(1), backend="onnxruntime")
    assert OPTIMIZED_KEY in fast._runner()._output._session.metadata


def test_what_cannot_be_optimised_runs_as_it_is_exported(model, bounds, eager, monkeypatch):
    if (reason := OnnxSession.unavailable(CPU, torch.float32)) is not None:
        pytest.skip(reason)

    def fails(*_args, **_kwargs):
        raise uf.DataError("ONNX Runtime cannot load it")

    monkeypatch.setattr("unit_fast.export.optimized.optimize", fails)
    fast = uf.sanitize(model, bounds, images(1), backend="onnxruntime")
    with pytest.warns(FallbackWarning, match="runs as it is exported.*cannot load it"):
        fast.warmup([1])
    torch.testing.assert_close(fast(images(3)), eager(images(3)), rtol=1e-4, atol=1e-4)


def test_changed_weights_are_exported_anew(fast, model):
    clone = copy.deepcopy(fast)
    with torch.no_grad():
        clone.graph_module.get_parameter("head.weight").zero_()
    torch.testing.assert_close(clone(images(4)), model.head.bias.expand(4, -1))
    assert not torch.equal(fast(images(4)), clone(images(4)))


def test_a_dtype_it_does_not_take_is_refused_before_and_after(fast, model, bounds, backend):
    with pytest.raises(uf.BackendUnavailableError, match=r"float32 and this one is in torch\.float16"):
        uf.sanitize(model, bounds, images(1), backend=backend, dtype=torch.float16)
    with pytest.raises(uf.BackendUnavailableError, match=r"float32 and this one is in torch\.float64"):
        fast.double()
    assert fast(images(3)).dtype == torch.float32  # and is as it was


def test_without_a_temporary_folder_it_says_so_and_auto_goes_on(model, bounds, monkeypatch, backend):
    def none(**_):
        raise FileNotFoundError("No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(exported.tempfile, "TemporaryDirectory", none)
    message = "No usable temporary directory.*point TMPDIR"
    with pytest.raises(uf.BackendUnavailableError, match=message):
        uf.sanitize(model, bounds, images(1), backend=backend).warmup([2])
    monkeypatch.setattr(automatic, "CANDIDATES", {"cpu": {backend: SESSIONS[backend]}})
    monkeypatch.setattr(automatic.Automatic, "unavailable", lambda *_: None)
    fast = uf.sanitize(model, bounds, images(1))
    with pytest.warns(FallbackWarning, match=message):
        fast.warmup([2])
    assert fast(images(2)).shape == (2, 5)


@pytest.mark.parametrize("session", SESSIONS.values(), ids=SESSIONS)
def test_missing_packages_are_named(monkeypatch, session):
    monkeypatch.setattr(sessions.importlib.util, "find_spec", lambda name: None if name != "onnx" else name)
    reason = session.unavailable(CPU, torch.float32)
    assert reason == f"onnxscript and {session.target} cannot be imported; install unit_fast[{session.target}]"


def test_what_disagrees_with_the_reference_is_not_served(monkeypatch, backend):
    model = OneConv().eval()
    fast = uf.sanitize(model, bounds_of(model, images(1)), images(1), backend=backend)
    run = exported.ExportedGraph._run
    monkeypatch.setattr(exported.ExportedGraph, "_run", lambda *given: [y + 0.01 for y in run(*given)])
    with pytest.raises(uf.ParityError, match=f"{SESSIONS[backend].runtime} does not compute"):
        fast(images(2))


def test_explain_tells_the_form_of_each_clamp(fast, backend):
    text = fast.explain()
    assert "blocks.0.relu_1" in text
    assert SESSIONS[backend].runtime in text
    assert "min after the activation" in text


def test_several_threads_call_it_at_once(fast, eager):
    batches = [images(size, seed=seed) for seed, size in enumerate([1, 3, 3, 7])]
    expected = [eager(batch) for batch in batches]
    found: list[list[torch.Tensor]] = [[] for _ in batches]
    together = threading.Barrier(len(batches))

    def serve(batch, results):
        together.wait()
        results.extend(fast(batch) for _ in range(20))

    threads = [threading.Thread(target=serve, args=pair) for pair in zip(batches, found, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results, wanted in zip(found, expected, strict=True):
        assert len(results) == 20
        for result in results:
            torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-4)


class Handed(nn.Module):
    """An activation of the very input, the input itself, and one output twice."""

    def forward(self, x):
        y = F.relu(x)
        return y, x, y, y.flatten(1)


def test_outputs_are_memory_of_their_own_and_inputs_stay_as_they_were(backend):
    model, x = Handed(), images(2)
    fast = uf.sanitize(model, bounds_of(model, x), x, backend=backend).warmup([2])
    before, outputs = x.clone(), fast(x)
    kept = [output.clone() for output in outputs]
    fast(images(2, seed=9))
    assert torch.equal(x, before)
    for output, copied in zip(outputs, kept, strict=True):
        assert torch.equal(output, copied), "a later call wrote into what an earlier one returned"
    assert torch.equal(outputs[1], x)
    assert torch.equal(outputs[0], outputs[2])
    assert len({output.data_ptr() for output in (x, *outputs)}) >= 4
    x.fill_(7)
    assert torch.equal(outputs[1], before)


def test_channel_bounds_are_written_as_each_runtime_fuses_them(backend):
    model = OneConv().eval()
    x = images(2)
    bounds = bounds_of(model, x, "channel")
    fast, eager = (uf.sanitize(model, bounds, x, backend=way) for way in (backend, "eager"))
    torch.testing.assert_close(fast(images(5)), eager(images(5)), rtol=1e-5, atol=1e-5)
    assert ("mul_clip" in fast.explain()) == (backend == "openvino")
