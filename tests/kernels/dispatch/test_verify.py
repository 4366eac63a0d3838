"""A verification sees what goes wrong in kernels: a wrong tap, an unwritten tile, a lost clamp, a wrong dtype."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from unit_fast.kernels.agreement import TOLERANCE
from unit_fast.kernels.dispatch import verify
from unit_fast.kernels.dispatch.candidates import Candidate
from unit_fast.kernels.dispatch.problem import Problem, complete
from unit_fast.kernels.dispatch.verify import compared, difference, expected, random_operands, tolerance
from unit_fast.kernels.reference import conv2d_ref, linear_ref

CPU = torch.device("cpu")
ARGS = (torch.zeros(2, 8, 9, 9), torch.zeros(8, 8, 3, 3), torch.zeros(8), None, torch.zeros(8, 9, 9), (1, 1), (1, 1))


def posed(dtype):
    args = [a.to(dtype) if isinstance(a, torch.Tensor) else a for a in ARGS]
    problem = Problem.of("conv2d", complete("conv2d", args))
    operands = random_operands(problem, CPU)
    return problem, operands, expected(problem, operands)


def found(call, dtype=torch.float16, provider="triton"):
    problem, operands, truth = posed(dtype)
    return difference(problem, Candidate("under test", provider, call), operands, truth)


def shifted(x, weight, *rest):
    return conv2d_ref(x, weight.flip(-1), *rest)


def without_padding(x, *rest):
    y = conv2d_ref(x, *rest)
    y[..., 0] = 0
    return y


def unwritten(x, *rest):
    y = conv2d_ref(x, *rest)
    y[-1, :, -1, -1] = float("nan")
    return y


def unclamped(x, weight, bias, residual, _bound, *rest):
    return conv2d_ref(x, weight, bias, residual, None, *rest)


def without_bias(x, weight, _bias, *rest):
    return conv2d_ref(x, weight, None, *rest)


def bound_of_another_layout(x, weight, bias, residual, bound, *rest):
    return conv2d_ref(x, weight, bias, residual, bound.transpose(1, 2), *rest)


@pytest.mark.parametrize(
    "wrong", [shifted, without_padding, unwritten, unclamped, without_bias, bound_of_another_layout]
)
def test_what_kernels_get_wrong_is_seen(wrong):
    assert ("unwritten" if wrong is unwritten else "wrong by up to") in found(wrong)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_rounding_is_no_difference(dtype):
    assert found(conv2d_ref, dtype) is None

    def rounded_twice(x, weight, bias, _residual, bound, *rest):
        y = F.conv2d(x, weight, None, *rest[:4]) + bias[:, None, None]
        return torch.minimum(y, bound)

    assert found(rounded_twice, dtype, "library") is None


def test_only_a_library_may_round_twice_and_long_sums_may_differ_more():
    problem, _, _ = posed(torch.float16)
    library, fused = (Candidate("under test", provider, conv2d_ref) for provider in ("library", "triton"))
    assert tolerance(problem, library) == 4 * tolerance(problem, fused)
    rows, long = (torch.zeros(2, k) for k in (100, 4000)), []
    for x in rows:
        given = Problem.of("linear", complete("linear", (x, x)))
        long.append(tolerance(dataclasses.replace(given, precision="tf32x3"), fused))
    assert long[1] == pytest.approx(4 * long[0])


def test_of_large_outputs_some_samples_are_compared_and_all_must_be_written(monkeypatch):
    monkeypatch.setattr(verify, "MOST_COMPARED", 100)
    problem = Problem.of("linear", complete("linear", (torch.zeros(50, 8), torch.zeros(4, 8))))
    picked = compared(problem)
    assert (picked[0], picked[-1], len(picked), len(set(picked))) == (0, 49, 16, 16)
    operands = random_operands(problem, CPU)
    truth = expected(problem, operands)
    assert truth.shape == (16, 4)

    def broken(row, value):
        def call(*args):
            y = linear_ref(*args)
            y[row] = value
            return y

        return difference(problem, Candidate("under test", "triton", call), operands, truth)

    assert difference(problem, Candidate("right", "triton", linear_ref), operands, truth) is None
    assert "wrong by up to" in broken(49, 7.0)
    unseen = next(row for row in range(50) if row not in picked)
    assert "unwritten" in broken(unseen, float("nan"))


def test_another_dtype_or_shape_is_a_difference():
    assert "expected torch.float16" in found(lambda *args: conv2d_ref(*args).float())
    assert "expected torch.float16 (2, 8, 9, 9)" in found(lambda *args: conv2d_ref(*args)[:1])


def test_operands_are_the_same_in_every_process_and_lie_as_they_should():
    problem, operands, _ = posed(torch.float16)
    again = random_operands(problem, CPU)
    assert all(torch.equal(a, b) for a, b in zip(operands, again, strict=True) if isinstance(a, torch.Tensor))
    assert Problem.of("conv2d", operands) == problem
