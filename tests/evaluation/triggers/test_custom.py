import pytest
import torch

from unit_fast.errors import DataError
from unit_fast.evaluation.triggers import Custom


def test_any_batch_goes_through_the_function():
    batch = torch.randn(4, 10) * 50
    assert torch.equal(Custom(lambda x: x + 1)(batch), batch + 1)


def test_a_function_that_writes_to_its_argument_leaves_the_batch_alone():
    batch = torch.zeros(2, 3)
    assert torch.equal(Custom(lambda x: x.fill_(7))(batch), torch.full((2, 3), 7.0))
    assert torch.equal(batch, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("fn", "found"),
    [
        pytest.param(lambda x: x[:1], r"\(1, 3\)", id="another shape"),
        pytest.param(lambda _: None, "NoneType", id="nothing"),
    ],
)
def test_a_result_of_another_shape_is_refused(fn, found):
    with pytest.raises(DataError, match=rf"must return a tensor of shape \(2, 3\), returned {found}"):
        Custom(fn)(torch.zeros(2, 3))
