"""The drop-in: what people do with an nn.Module, done with a sanitised one."""

import copy
import io
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn

import unit_fast as uf
from tests.networks import SmallResNet, randomised
from tests.runtime.networks import OneConv, bounds_of, images, needs_compiler
from unit_fast.errors import SizeWarning
from unit_fast.runtime.eager import Eager


@pytest.fixture
def model():
    return randomised(SmallResNet())


@pytest.fixture(scope="module")
def original():
    model = randomised(SmallResNet())
    return uf.sanitize(model, bounds_of(model, images(2)), images(2), backend="eager")


@pytest.fixture
def fast(original):
    return copy.deepcopy(original)  # sanitising takes seconds


@pytest.mark.parametrize("batch", [0, 1, 3, 7])
def test_under_inference_mode_and_no_grad(fast, batch):
    expected = fast(images(batch))
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert torch.equal(fast(images(batch) * 1), expected)
            assert fast.monitor(images(batch))[1].shape == (batch,)


@pytest.mark.parametrize(
    ("convert", "dtype"),
    [("double", torch.float64), ("half", torch.float16), ("bfloat16", torch.bfloat16)],
)
def test_converted_as_any_module(fast, convert, dtype):
    expected = fast(images(3))
    converted = getattr(copy.deepcopy(fast), convert)()
    assert all(tensor.dtype == dtype for tensor in converted.state_dict().values())
    y = converted(images(3).to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=5e-2, atol=5e-2)
    converted.warmup([2], monitor=True)  # its example was converted too
    assert fast(images(3)).dtype == torch.float32


def test_a_chosen_dtype_follows_a_conversion(model):
    bounds = bounds_of(model, images(2))
    fast = uf.sanitize(model, bounds, images(2), backend="eager", dtype=torch.bfloat16)
    assert fast(images(3)).dtype == torch.bfloat16
    assert fast.double()(images(3)).dtype == torch.float64


def test_to_a_device_and_back(fast):
    expected = fast(images(3))
    meta = copy.deepcopy(fast).to("meta")
    assert meta(images(3).to("meta")).shape == expected.shape
    assert torch.equal(fast.to("cpu")(images(3)), expected)


def test_what_a_model_makes_anew_and_brings_along_goes_with_it():
    class Ramp(OneConv):
        def forward(self, x):
            return super().forward(x - torch.tensor(0.5).to(x.device) + torch.arange(x.shape[-1], device=x.device))

    model = Ramp().eval()
    fast = uf.sanitize(model, bounds_of(model, images(2)), images(2), backend="eager")
    expected = fast(images(3))
    torch.testing.assert_close(copy.deepcopy(fast).double()(images(3).double()).float(), expected)
    assert copy.deepcopy(fast).to("meta")(images(3).to("meta")).shape == expected.shape


def test_a_move_that_moves_nothing_builds_nothing(fast):
    fast(images(3))
    runner = fast._runner()
    assert fast.to("cpu").float().eval()._runner() is runner
    assert fast.double()._runner() is not runner


@pytest.mark.parametrize(
    "change",
    [
        lambda fast, changed: fast.load_state_dict(changed, assign=True),
        lambda fast, changed: nn.Sequential(fast).load_state_dict(
            {f"0.{name}": tensor for name, tensor in changed.items()}, assign=True
        ),
        lambda fast, changed: fast.load_state_dict(changed),
        lambda fast, changed: setattr(fast.graph_module.head, "bias", nn.Parameter(changed["graph_module.head.bias"])),
    ],
    ids=["assigned", "assigned from outside", "loaded", "a parameter replaced"],
)
def test_changed_weights_are_built_anew(fast, change):
    fast(images(2))
    before = fast._runner()
    changed = {name: tensor + 1 if name.endswith("head.bias") else tensor for name, tensor in fast.state_dict().items()}
    change(fast, changed)
    assert fast._runner() is not before
    assert fast._runner() is fast._runner()


def test_writes_that_torch_does_not_count_are_made_known_by_loading(fast):
    fast(images(2))
    before = fast._runner()
    fast.graph_module.get_parameter("head.bias").data.mul_(2)
    fast.load_state_dict(fast.state_dict())
    assert fast._runner() is not before


def test_a_conversion_that_the_backend_cannot_follow_converts_nothing(fast, monkeypatch):
    expected = fast(images(3))

    def float32_only(device, dtype):  # noqa: ARG001 - the protocol's
        return None if dtype == torch.float32 else "float32 only"

    monkeypatch.setattr(Eager, "unavailable", float32_only)
    for convert in (fast.half, lambda: fast.to("cpu", torch.float64)):
        with pytest.raises(uf.BackendUnavailableError, match="float32 only"):
            convert()
        assert torch.equal(fast(images(3)), expected)


def test_a_deep_copy_is_a_model_of_its_own(fast):
    expected = fast(images(3))
    clone = copy.deepcopy(fast)
    assert torch.equal(clone(images(3)), expected)
    with torch.no_grad():
        for tensor in clone.state_dict().values():
            tensor.zero_()
    assert clone(images(3)).abs().max() == 0
    assert torch.equal(fast(images(3)), expected)
    assert torch.equal(copy.copy(fast)(images(3)), expected)


def test_a_state_dict_changes_the_model_and_not_the_bounds_it_was_made_of(fast):
    kept = {name: bound.clone() for name, bound in fast.bounds.items()}
    fast.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in fast.state_dict().items()})
    assert all(torch.equal(bound, kept[name]) for name, bound in fast.bounds.items())
    assert fast(images(2)).abs().max() == 0


@pytest.mark.parametrize("save", [pickle.dumps, lambda fast: torch.save(fast, io.BytesIO())], ids=["pickle", "torch"])
def test_pickling_is_refused_with_a_way_out(fast, save):
    with pytest.raises(uf.UnitFastError, match=r"cannot be pickled.*bounds file.*sanitize\(\).*export_onnx"):
        save(fast)


def test_it_stays_in_evaluation_mode(fast):
    expected = fast(images(3))
    assert fast.train() is fast
    assert not any(module.training for module in fast.modules())
    outer = nn.Sequential(fast, nn.Dropout(0.5)).train()
    assert not fast.training
    assert outer[1].training
    assert torch.equal(fast(images(3)), expected)


@pytest.mark.parametrize("sizes", [4, "4", [2.0], ["2"], [True], [0], [-1], None], ids=repr)
def test_batch_sizes_that_are_none_are_refused(fast, sizes):
    with pytest.raises(uf.UnitFastError, match=r"expected positive whole numbers, such as warmup\(\[1, 32\]\)"):
        fast.warmup(sizes)


def test_any_iterable_of_sizes_will_do(fast):
    assert fast.warmup(range(1, 3)) is fast
    assert fast.warmup([np.int64(2), torch.tensor(1)]) is fast


def test_threads_share_one_module_while_weights_change(fast):
    """Each answer is that of the weights before or after, whole."""
    before, x = fast(images(3)), images(3)
    with torch.no_grad():
        changed = copy.deepcopy(fast)
        changed.graph_module.get_parameter("head.bias").add_(1)
    answers: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: [answers.append(fast(x)) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    with torch.no_grad():
        fast.graph_module.get_parameter("head.bias").add_(1)
    for thread in threads:
        thread.join()
    assert len(answers) == 80
    assert all(torch.equal(y, before) or torch.equal(y, changed(x)) for y in answers)


def test_explain_names_every_site_and_what_runs_it(fast):
    lines = fast.explain().splitlines()
    assert lines[0] == "5 sites, bounds per neuron, backend eager"
    assert [line.split()[0] for line in lines[3:]] == list(fast.bounds)
    assert all("eagerly" in line for line in lines[3:])


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "compile"])
def test_inside_torch_compile_it_is_the_sanitised_graph(backend):
    model = OneConv().eval()
    fast = uf.sanitize(model, bounds_of(model, images(2)), images(2), backend=backend)
    expected = uf.sanitize(model, fast.bounds, images(2), backend="eager")(images(3))
    outer = torch.compile(nn.Sequential(fast, nn.Softmax(1)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(outer(images(3)), expected.softmax(1))
    program = torch.export.export(fast, (images(3),))
    torch.testing.assert_close(program.module()(images(3)), expected)


@pytest.mark.parametrize("call", ["__call__", "monitor", "inspect"])
def test_another_size_than_the_example_s_is_warned_of_once(model, call, recwarn):
    fast = uf.sanitize(model, bounds_of(model, images(2), "channel"), images(2), backend="eager")
    getattr(fast, call)(images(5))
    assert not recwarn.list, "another batch size is no other size"
    message = r"shape \(3, 12, 12\) came, and the example's was \(3, 8, 8\).*sanitize with an example of this size"
    with pytest.warns(SizeWarning, match=message) as warned:
        getattr(fast, call)(images(2, 12))
    assert warned[0].filename == __file__, "it names the caller's line"
    getattr(fast, call)(images(2, 12))
    assert len(recwarn.list) == 0
