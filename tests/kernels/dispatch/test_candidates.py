"""Who is offered for which problem, and that each of them gives the reference's values."""

import dataclasses

import pytest
import torch

from tests.kernels.dispatch.ways import A100, H200
from unit_fast.kernels.dispatch.candidates import WIDTH, candidates_for
from unit_fast.kernels.dispatch.environment import environment_of, interpreting
from unit_fast.kernels.dispatch.problem import Problem, complete
from unit_fast.kernels.dispatch.verify import difference, expected, random_operands

NHWC = {"memory_format": torch.channels_last}


def problem(operator, *args):
    return Problem.of(operator, complete(operator, args))


def half(*shape):
    return torch.zeros(shape, dtype=torch.float16)


def image(*shape):
    return half(*shape).contiguous(**NHWC)


def names(posed, environment=H200, width=WIDTH):
    return [candidate.name for candidate in candidates_for(posed, environment, width)]


CASES = {  # problem, what is expected in H200's list, what must not be there
    "1x1": (("conv2d", image(8, 64, 56, 56), image(64, 64, 1, 1)), "tma", "depthwise"),
    "1x1 strided": (("conv2d", image(8, 64, 56, 56), image(64, 64, 1, 1), None, None, None, (2, 2)), "pointer", "tma"),
    "3x3": (
        ("conv2d", image(8, 64, 56, 56), image(64, 64, 3, 3), None, None, None, (1, 1), (1, 1)),
        "tma",
        "depthwise",
    ),
    "3x3 strided": (("conv2d", image(8, 64, 56, 56), image(64, 64, 3, 3), None, None, None, (2, 2)), "pointer", "tma"),
    "small map": (("conv2d", image(8, 64, 8, 8), image(64, 64, 3, 3)), "pointer", "tma"),
    "ragged": (("conv2d", image(8, 72, 56, 56), image(64, 72, 3, 3)), "pointer", "tma"),
    "stem": (("conv2d", image(8, 3, 64, 64), image(64, 3, 7, 7)), "pointer", "tma"),
    "depthwise": (
        ("conv2d", image(8, 64, 56, 56), half(64, 1, 3, 3), None, None, None, (1, 1), (1, 1), (1, 1), 64),
        "triton depthwise",
        "tma",
    ),
    "grouped": (
        ("conv2d", image(8, 64, 56, 56), half(64, 32, 3, 3), None, None, None, (1, 1), (1, 1), (1, 1), 2),
        "cudnn + epilogue",
        "triton",
    ),
    "linear": (("linear", half(32, 197, 768), half(3072, 768)), "tma", "cudnn"),
    "linear of ragged rows": (("linear", half(32, 197, 766), half(3072, 766)), "pointer", "tma"),
    "epilogue": (("epilogue", half(32, 100)), "triton", "cudnn"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_offered(case):
    call, there, absent = CASES[case]
    offered = names(problem(*call))
    assert any(there in name for name in offered), offered
    assert not any(absent in name for name in offered), offered
    assert offered[-1] == "reference"
    assert len(offered) <= WIDTH + 2
    assert len(set(offered)) == len(offered)


def test_what_tma_needs_is_not_offered_before_sm_90():
    assert not any("tma" in name for name in names(problem(*CASES["1x1"][0]), A100))


@pytest.mark.parametrize(
    "posed",
    [
        problem("linear", torch.zeros(3, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)),
        problem("linear", half(0, 4), half(2, 4)),
        problem("linear", half(3, 0), half(2, 0)),
    ],
    ids=["float64", "no rows", "a sum over nothing"],
)
def test_the_reference_alone_takes_what_no_kernel_does(posed):
    assert names(posed) == ["reference"]


def test_without_triton_the_reference_is_alone():
    assert names(problem("epilogue", half(3, 4)), dataclasses.replace(H200, triton_runs=False)) == ["reference"]


def small(name):
    """Small problems, for the interpreter."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    bound = draw(5, 4, 4).abs()
    return {
        "conv2d": ("conv2d", draw(2, 8, 6, 6), draw(5, 8, 3, 3), draw(5), draw(2, 5, 4, 4), bound),
        "1x1": ("conv2d", draw(2, 8, 4, 4), draw(5, 8, 1, 1), draw(5), None, bound),
        "depthwise": ("conv2d", draw(2, 5, 4, 4), draw(5, 1, 3, 3), draw(5), None, bound, (1, 1), (1, 1), (1, 1), 5),
        "linear": ("linear", draw(4, 3, 16), draw(5, 16), draw(5), draw(4, 3, 5), draw(3, 5).abs()),
        "epilogue": ("epilogue", draw(3, 5, 4, 4), draw(5, 1, 1), draw(5, 1, 1), None, bound),
    }[name]


@pytest.mark.skipif(not (torch.cuda.is_available() or interpreting()), reason="needs a GPU or Triton's interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["conv2d", "1x1", "depthwise", "linear", "epilogue"])
def test_every_candidate_passes_its_verification_and_counts_alike(name, dtype, device):
    operator, *args = small(name)
    args = [a.to(device, dtype) if isinstance(a, torch.Tensor) else a for a in args]
    posed = problem(operator, *args)
    environment = environment_of(device)
    operands = random_operands(posed, device)
    truth = expected(posed, operands)
    saturated = []
    offered = candidates_for(posed, environment, 2)
    for candidate in offered:
        assert difference(posed, candidate, operands, truth) is None, candidate.name
        counts = torch.full((args[0].shape[0],), 7, dtype=torch.int32, device=device)
        candidate.call(*operands, counts=counts)
        saturated.append(counts - 7)
    assert len(offered) >= 2
    for counts in saturated:  # a value within rounding of its bound may fall on either side
        assert (counts - saturated[-1]).abs().max() <= 1
    assert 0.02 < saturated[-1].sum() / truth.numel() < 0.6, "the bounds of a verification must bind"


def test_the_reference_counts_against_a_bound_only():
    reference = candidates_for(problem("epilogue", half(3, 4)), H200)[-1]
    with pytest.raises(ValueError, match="none was given"):
        reference.call(*complete("epilogue", (half(3, 4),)), counts=torch.zeros(3, dtype=torch.int32))
