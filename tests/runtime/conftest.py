"""What the tests of exported sessions run, in float and in int8; files with networks of their own name them alike."""

import pytest

import unit_fast as uf
from tests.networks import SmallResNet, randomised
from tests.runtime.networks import bounds_of, images


@pytest.fixture(scope="module")
def model():
    return randomised(SmallResNet())


@pytest.fixture(scope="module")
def bounds(model):
    return bounds_of(model, images(2), most=0.6)


@pytest.fixture(scope="module")
def eager(model, bounds):
    return uf.sanitize(model, bounds, images(1), backend="eager")
