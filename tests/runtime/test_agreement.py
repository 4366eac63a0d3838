"""When a backend counts as right: rounding passes, nothing else does."""

from types import SimpleNamespace

import pytest
import torch

from unit_fast.runtime.agreement import TOLERANCES, difference, tolerance

EXPECTED = torch.linspace(-3, 3, 101, dtype=torch.float64)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_rounding_passes_and_ten_tolerances_do_not(dtype):
    expected = EXPECTED.to(dtype)
    assert difference([expected * (1 + 2 * torch.finfo(dtype).eps)], [expected]) is None
    wrong = expected.clone()
    wrong[7] += 30 * TOLERANCES[dtype]
    assert "output 0 is off by" in difference([wrong], [expected])


@pytest.fixture
def tf32(request):
    """Whether torch may multiply float32 by TF32 in convolutions."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = request.param
    yield request.param
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("tf32", [True, False], indirect=True, ids=["tf32", "full"])
@pytest.mark.parametrize("is_cuda", [True, False], ids=["cuda", "cpu"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_only_tf32_widens_what_float32_may_differ_by(dtype, is_cuda, tf32):
    widened = tf32 and is_cuda and dtype == torch.float32
    as_of = torch.float16 if widened else dtype
    assert tolerance(SimpleNamespace(is_cuda=is_cuda, dtype=dtype)) == TOLERANCES[as_of]


@pytest.mark.parametrize(
    ("actual", "expected", "said"),
    [
        pytest.param([1.0, 2.0], [[1.0, 2.0]], "is torch.float32 (2,), expected torch.float32 (1, 2)", id="shape"),
        pytest.param([float("nan"), 1.0], [1.0, 1.0], "NaN in other places", id="nan"),
        pytest.param([0.5], [0.0], "off by", id="something where zero belongs"),
        pytest.param([float("inf")], [1.0], "off by inf", id="infinity"),
    ],
)
def test_what_differs_is_said(actual, expected, said):
    assert said in difference([torch.tensor(actual)], [torch.tensor(expected)])


@pytest.mark.parametrize("values", [[float("nan"), 1.0], [], [0.0]], ids=["nan alike", "nothing", "zero"])
def test_what_is_alike_passes(values):
    assert difference({"a": torch.tensor(values)}, {"a": torch.tensor(values)}) is None


def test_other_dtypes_are_said():
    assert "is torch.float16" in difference([torch.zeros(2).half()], [torch.zeros(2)])


def test_counts_may_move_by_one_in_a_hundred():
    counts = torch.tensor([[0, 500]])
    assert difference([counts + torch.tensor([[1, 6]])], [counts], counts=[0]) is None
    assert difference([counts + torch.tensor([[0, 7]])], [counts], [-1]) == "output 0 is off by 7; expected at most 6"


@pytest.mark.parametrize("values", [[0, 9], [False, True]], ids=["indices", "truth values"])
def test_whole_numbers_of_the_model_are_compared_by_kind_only(values):
    """Where clamped values tie, topk and argmax may name any of them."""
    indices, counts = torch.tensor(values), torch.tensor([500])
    assert difference([indices.flip(0), counts], [indices, counts], counts=(-1,)) is None
    assert "output 0 is torch.int32" in difference([indices.int()], [indices])
    assert "off by 7" in difference([indices.flip(0), counts + 7], [indices, counts], counts=(-1,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_what_is_computed_in_half_precision_is_judged_by_it_whatever_it_is_returned_in(dtype):
    expected, counts = EXPECTED.float(), torch.tensor([[20, 104]])
    rounded, moved = expected.to(dtype).float(), counts + torch.tensor([[2, 4]])
    judged = {"counts": (-1,), "computed_in": dtype}
    assert difference([1.002 * rounded, moved], [expected, counts], **judged) is None
    assert "output 0 is off by" in difference([1.002 * rounded], [expected])
    assert "output 0 is off by 4; expected at most 2" in difference([moved], [counts], counts=(-1,))
    assert "output 0 is off by" in difference([1.2 * expected], [expected], computed_in=dtype)
    assert "output 0 is off by" in difference([2 * counts], [counts], **judged)
    assert tolerance(expected.double(), torch.float32) == TOLERANCES[torch.float32]
