import numpy as np
import pytest
import torch

from unit_fast.errors import DataError
from unit_fast.evaluation.triggers import Add


def test_the_pattern_is_added_and_cut_to_the_range():
    pattern, images = torch.rand(3, 5, 6) * 2 - 1, torch.rand(4, 3, 5, 6)
    expected = np.clip(images.numpy() + pattern.numpy()[None], 0, 1)
    np.testing.assert_array_equal(Add(pattern)(images).numpy(), expected)
    assert (expected == 0).any()
    assert (expected == 1).any()


def test_a_pattern_of_another_size_is_refused():
    with pytest.raises(DataError, match=r"the pattern is \(4, 4\) pixels, the images are \(8, 8\).*never resized"):
        Add(torch.zeros(3, 4, 4))(torch.zeros(1, 3, 8, 8))


def test_a_transparent_pattern_is_refused():
    with pytest.raises(DataError, match="without transparency"):
        Add(torch.zeros(4, 4, 4))
