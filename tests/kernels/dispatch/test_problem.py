"""What makes two calls the same problem, and how it is written."""

import pytest
import torch

from unit_fast.kernels import ops
from unit_fast.kernels.dispatch.problem import Problem, Spec, complete
from unit_fast.kernels.layout import pack_bound

X = torch.zeros(2, 8, 6, 6)
WEIGHT = torch.zeros(4, 8, 3, 3)
NHWC = {"memory_format": torch.channels_last}


def conv2d(*args: object) -> Problem:
    return Problem.of("conv2d", complete("conv2d", args))


def test_left_out_arguments_have_the_defaults_of_the_schema():
    full = (X, WEIGHT, None, None, None, (1, 1), (0, 0), (1, 1), 1, "identity", ())
    assert complete("conv2d", (X, WEIGHT)) == full
    assert complete("conv2d", (X, WEIGHT, None, None, None, [1, 1], [0, 0], [1, 1], 1, "identity", [])) == full
    assert complete("linear", (X, WEIGHT, None, X)) == (X, WEIGHT, None, X, None, "identity", ())
    for operator in ("epilogue", "linear", "conv2d"):
        assert hasattr(ops, operator)  # and so it is registered
        schema = getattr(torch.ops.unit_fast, operator).default._schema
        assert len(complete(operator, (X,))) == len(schema.arguments)


def test_a_problem_is_one_readable_line():
    bound = pack_bound(torch.zeros(4, 3, 3))
    problem = conv2d(X.half().contiguous(**NHWC), WEIGHT.half(), None, None, bound.half(), [2, 2], [1, 1])
    assert problem.key == (
        "conv2d x=2x8x6x6:float16/channels_last weight=4x8x3x3:float16 bound=4x3x3:float16/hwc stride=2,2 padding=1,1"
    )
    assert problem.out_shape == (2, 4, 3, 3)


DIFFERENT = {
    "batch": (X[:1], WEIGHT),
    "layout": (X.contiguous(**NHWC), WEIGHT),
    "dtype": (X.half(), WEIGHT.half()),
    "bias": (X, WEIGHT, torch.zeros(4)),
    "residual": (X, WEIGHT, None, torch.zeros(2, 4, 4, 4)),
    "bound": (X, WEIGHT, None, None, torch.zeros(())),
    "stride": (X, WEIGHT, None, None, None, (2, 1)),
    "activation": (X, WEIGHT, None, None, None, (1, 1), (0, 0), (1, 1), 1, "relu"),
    "unaligned": (torch.zeros(2 * 8 * 36 + 1)[1:].view(2, 8, 6, 6), WEIGHT),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_whatever_may_matter_makes_another_problem(case):
    problem, other = conv2d(X, WEIGHT), conv2d(*DIFFERENT[case])
    assert problem != other
    assert problem.key != other.key


def test_values_do_not_matter():
    assert conv2d(X, WEIGHT) == conv2d(torch.ones_like(X), torch.ones_like(WEIGHT))


@pytest.mark.parametrize(
    ("tensor", "layout"),
    [
        (X, "contiguous"),
        (X.contiguous(**NHWC), "channels_last"),
        (X[:, :, ::2], "strided"),
        (pack_bound(torch.zeros(4, 3, 5)), "hwc"),
        (torch.zeros(5, 3).t(), "strided"),
    ],
)
def test_a_tensor_of_a_layout_can_be_made_again(tensor, layout):
    spec = Spec.of(tensor)
    assert spec.layout == layout
    made = spec.lay_out(torch.rand(spec.shape))
    assert made.shape == tensor.shape
    if layout != "strided":  # kernels copy those first
        assert made.stride() == tensor.stride()


@pytest.mark.parametrize(
    ("args", "empty"),
    [((X, WEIGHT), False), ((X[:0], WEIGHT), True), ((X, WEIGHT[:0]), True)],
    ids=["some", "no sample", "no channel"],
)
def test_nothing_to_compute(args, empty):
    assert conv2d(*args).empty is empty
