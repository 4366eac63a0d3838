"""Frozen weights of compiled graphs: one copy of what is equal, none once the model is gone."""

import gc
import sys
import weakref
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch._inductor.codecache import PyCodeCache

import unit_fast as uf
from tests.runtime.networks import OneConv, bounds_of, images, needs_compiler
from unit_fast.runtime import constants as constants_module
from unit_fast.runtime.constants import Constants


@pytest.fixture
def generated(monkeypatch):
    """Puts a module with these constants where Inductor keeps those it generates."""
    monkeypatch.setattr(PyCodeCache, "modules", [])

    def made(**constants):
        module = ModuleType(f"generated_{len(PyCodeCache.modules)}")
        vars(module).update(constants)
        PyCodeCache.modules.append(module)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return module

    return made


def packed(weight: Tensor, size: int = 8) -> Tensor:
    """A weight in the layout that oneDNN's convolution of maps of ``size`` wants."""
    return torch.ops.mkldnn._reorder_convolution_weight(weight, [1, 1], [1, 1], [1, 1], 1, [1, 3, size, size])


def weight(**changes) -> Tensor:
    drawn = torch.randn(16, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    for place, value in changes.items():
        drawn.view(-1)[int(place.removeprefix("at_"))] = value
    return drawn


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (weight(), weight()),
        (weight().to(memory_format=torch.channels_last), weight().to(memory_format=torch.channels_last)),
        (torch.zeros(0, 4), torch.zeros(0, 4)),
        (torch.tensor(2.0), torch.tensor(2.0)),
        (packed(weight()), packed(weight())),
        (torch.full((3,), torch.nan), torch.full((3,), torch.nan)),
    ],
    ids=["plain", "channels_last", "empty", "scalar", "packed", "nan"],
)
def test_equal_constants_are_held_once(generated, first, second):
    constants = Constants()
    with constants.sharing():
        one = generated(weight=first)
    with constants.sharing():
        other = generated(weight=second)
    assert one.weight is first
    assert other.weight is first


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (weight(), weight(at_100=0.5)),
        (torch.zeros(4), torch.tensor([0.0, 0.0, -0.0, 0.0])),
        (weight(), weight().to(memory_format=torch.channels_last)),
        (torch.zeros(4, 2), torch.zeros(2, 4)),
        (torch.zeros(2, dtype=torch.float32), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(1, 4).expand(3, 4), torch.zeros(3, 4)),
        (packed(weight()), packed(weight(at_100=0.5))),
        (packed(weight()), weight().to_mkldnn()),
    ],
    ids=["value", "sign of zero", "layout", "shape", "dtype", "strides", "packed value", "packed layout"],
)
def test_others_are_not(generated, first, second):
    constants = Constants()
    with constants.sharing():
        one, other = generated(weight=first), generated(weight=second)
    assert one.weight is first
    assert other.weight is second


def test_modules_of_others_and_those_without_constants_are_left_alone(generated):
    before = generated(weight=weight())
    constants = Constants()
    with constants.sharing():
        plain, own = generated(call=print), generated(weight=weight())
    assert own.weight is not before.weight
    del constants
    gc.collect()
    assert PyCodeCache.modules == [before, plain]
    assert own.__name__ not in sys.modules
    assert before.__name__ in sys.modules


def test_a_module_is_taken_also_when_the_compilation_fails_later(generated):
    def compile_and_fail(constants):
        with constants.sharing():
            generated(weight=weight())
            raise RuntimeError("later")

    constants = Constants()
    with pytest.raises(RuntimeError, match="later"):
        compile_and_fail(constants)
    assert len(constants._modules) == 1
    del constants
    gc.collect()
    assert PyCodeCache.modules == []


@pytest.mark.parametrize(
    "constant",
    [
        torch.zeros(3, device="meta"),
        torch.zeros(3, 3).to_sparse(),
        torch.tensor([1j]).conj(),
        torch.tensor([1j]).conj().imag,
    ],
    ids=["meta", "sparse", "conj", "neg"],
)
def test_what_bytes_do_not_tell_is_left_as_it_is(generated, constant):
    constants = Constants()
    with constants.sharing():
        one, other = generated(weight=constant), generated(weight=constant.detach())
    assert one.weight is constant
    assert other.weight is not constant


@needs_compiler
@pytest.mark.slow
def test_equal_weights_are_held_once_and_those_of_a_model_that_is_gone_not_at_all(monkeypatch):
    gc.collect()
    before = set(map(id, PyCodeCache.modules))
    made: list[weakref.ref[Tensor]] = []
    content = constants_module._content

    def observed(tensor):
        made.append(weakref.ref(tensor))
        return content(tensor)

    monkeypatch.setattr(constants_module, "_content", observed)
    model = OneConv().eval()
    fast = uf.sanitize(model, bounds_of(model, images(1)), images(1), backend="compile")
    fast.warmup([1, 2], monitor=True)
    modules = [module for module in PyCodeCache.modules if id(module) not in before]
    assert len(modules) == 6  # one sample, several, two; the output alone and with counts
    gc.collect()
    # MKL's packed linear layers are not: their buffers have bytes that nothing was written to.
    alive = {id(ref()) for ref in made if ref() is not None}
    assert len(alive) < 0.5 * len(made)
    fast(images(1))
    del modules, fast
    gc.collect()
    assert [module for module in PyCodeCache.modules if id(module) not in before] == []
    assert [ref for ref in made if ref() is not None] == []
