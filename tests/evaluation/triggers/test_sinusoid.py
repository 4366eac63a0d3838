import math

import numpy as np
import pytest
import torch

from unit_fast.errors import DataError
from unit_fast.evaluation.triggers import Sinusoid


@pytest.mark.parametrize("first_column", [0, 1], ids=["counted from 0", "counted from 1 as in the paper"])
def test_columns_carry_the_wave(first_column):
    images = torch.rand(2, 3, 4, 10)
    expected = images.numpy().astype(np.float64)
    for place in range(10):
        expected[..., place] += 0.3 * math.sin(2 * math.pi * (place + first_column) * 3 / 10)
    expected = np.minimum(np.maximum(expected, 0), 1)
    stamped = Sinusoid(delta=0.3, frequency=3, first_column=first_column)(images)
    np.testing.assert_allclose(stamped.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"delta": 20}, r"pixel range \[0, 1\], found 20; divide by 255", id="bytes"),
        pytest.param({"delta": 0}, "delta above 0", id="no amplitude"),
        pytest.param({"frequency": math.nan}, "frequency above 0", id="NaN"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        Sinusoid(**settings)
