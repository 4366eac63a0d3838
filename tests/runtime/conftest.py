"""What several files share; files with networks of their own name them alike."""

import pytest

import unit_fast as uf
from tests.networks import SmallResNet, randomised
from tests.runtime.candidates import CLOCK, made_program
from tests.runtime.networks import bounds_of, images
from unit_fast.runtime import automatic


@pytest.fixture(scope="module")
def model():
    return randomised(SmallResNet())


@pytest.fixture(scope="module")
def bounds(model):
    return bounds_of(model, images(2), most=0.6)


@pytest.fixture(scope="module")
def eager(model, bounds):
    return uf.sanitize(model, bounds, images(1), backend="eager")


@pytest.fixture(scope="module")
def program():
    """One convolution, for candidates that are made up."""
    return made_program()


@pytest.fixture
def choosing(monkeypatch, program):
    """Makes an auto that chooses between the given candidates, by the made-up clock."""

    def made(compile_, onnxruntime, openvino=None):
        given = {"compile": compile_, "onnxruntime": onnxruntime, "openvino": openvino}
        monkeypatch.setattr(
            automatic, "CANDIDATES", {"cpu": {name: kind for name, kind in given.items() if kind is not None}}
        )
        monkeypatch.setattr(automatic.Automatic, "clock", CLOCK)
        return automatic.Automatic(program)

    return made
