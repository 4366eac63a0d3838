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


@needs_compiler
@pytest.mark.slow
def test_a_model_that_is_gone_leaves_no_weights_behind():
    model = OneConv().eval()
    bounds, before = bounds_of(model, images(1)), len(PyCodeCache.modules)
    fast = uf.sanitize(model, bounds, images(1), backend="compile").warmup([1, 2], monitor=True)
    modules = PyCodeCache.modules[before:]
    assert len(modules) == 6  # one sample, several, two; the output alone and with counts
    held = [value for module in modules for value in vars(module).values() if isinstance(value, Tensor)]
    assert len({id(value) for value in held}) < len(held) / 2
    alive = [weakref.ref(value) for value in held]
    del modules, held, fast
    gc.collect()
    assert len(PyCodeCache.modules) == before
    assert [ref() for ref in alive if ref() is not None] == []
