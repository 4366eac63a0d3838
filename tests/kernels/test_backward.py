"""The gradient kernels of the clamp against autograd through the reference."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton")

from unit_fast.kernels import backward
from unit_fast.kernels.reference import clamp_bound_ref

# bfloat16 on a GPU only: the interpreter's bfloat16 products are wrong (Triton 3.6 and 3.9)
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])]
NHWC = torch.channels_last
CASES = {  # id: (x, bound, layout)
    "neuron": ((5, 3, 4, 6), (3, 4, 6), torch.contiguous_format),
    "neuron_nhwc": ((5, 3, 4, 6), (3, 4, 6), NHWC),
    "channel": ((5, 3, 4, 6), (3, 1, 1), torch.contiguous_format),
    "channel_nhwc": ((5, 3, 4, 6), (3, 1, 1), NHWC),
    "rows_nhwc": ((5, 3, 4, 6), (4, 1), NHWC),
    "tensor": ((5, 3, 4, 6), (), NHWC),
    "one_element": ((5, 3, 4, 6), (1, 1, 1), torch.contiguous_format),
    "features": ((43, 21), (21,), torch.contiguous_format),
    "tokens": ((7, 5, 9), (1, 9), torch.contiguous_format),
    "wide": ((3, 1030), (1030,), torch.contiguous_format),
    "many_rows": ((3000, 5), (5,), torch.contiguous_format),  # several chunks of several tiles
    "scalars": ((37,), (), torch.contiguous_format),
}


def _autograd(x, bound, grad):
    x, bound = x.double().requires_grad_(), bound.double().requires_grad_()
    return torch.autograd.grad(clamp_bound_ref(x, bound), (x, bound), grad.double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "bound_shape", "layout"), CASES.values(), ids=CASES)
def test_agrees_with_autograd(shape, bound_shape, layout, dtype, randn):
    x, bound = randn(shape, dtype, 0).to(memory_format=layout), randn(bound_shape, dtype, 1)
    grad = randn(shape, dtype, 2)
    dx, dbound = backward.clamp_bound_backward(grad, x, bound)
    expected_dx, expected_dbound = _autograd(x, bound, grad)
    assert (dx.dtype, dbound.dtype) == (dtype, dtype)
    assert torch.equal(dx.double(), expected_dx)
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(dbound.double(), expected_dbound, rtol=tolerance, atol=tolerance)


def test_half_precision_sums_are_kept_in_float32(device):
    """4,096 ones: in float16 a running sum would stop at 2,048."""
    x, bound = torch.ones(4096, 2, dtype=torch.float16, device=device), torch.zeros(2, device=device)
    _, dbound = backward.clamp_bound_backward(torch.ones_like(x), x, bound)
    assert dbound.tolist() == [4096.0, 4096.0]


def test_ties_nan_and_infinities(device):
    x = torch.tensor([[1.0, 2.0, 3.0, math.nan, math.inf, -math.inf]], device=device)
    grad = torch.full_like(x, 10.0)
    dx, dbound = backward.clamp_bound_backward(grad, x, torch.full((6,), 2.0, device=device))
    assert dx.tolist() == [[10.0, 10.0, 0.0, 10.0, 0.0, 10.0]]
    assert dbound.tolist() == [0.0, 0.0, 10.0, 0.0, 10.0, 0.0]


def test_infinite_gradient_where_nothing_is_clamped_leaves_the_bound_alone(device):
    _, dbound = backward.clamp_bound_backward(
        torch.full((2, 3), math.inf, device=device), torch.zeros(2, 3, device=device), torch.ones(3, device=device)
    )
    assert dbound.tolist() == [0.0, 0.0, 0.0]


def test_repeats_bit_for_bit(randn):
    x, bound, grad = (
        randn((3000, 5), torch.float32, 0),
        randn((5,), torch.float32, 1),
        randn((3000, 5), torch.float32, 2),
    )
    first, second = (backward.clamp_bound_backward(grad, x, bound)[1] for _ in range(2))
    assert torch.equal(first, second)


def test_bound_may_be_of_another_dtype(randn):
    x, grad = randn((6, 4), torch.float16, 0), randn((6, 4), torch.float16, 1)
    bound = randn((4,), torch.float32, 2)
    dx, dbound = backward.clamp_bound_backward(grad, x, bound)
    expected_dx, expected_dbound = _autograd(x, bound.half(), grad)
    assert dbound.dtype == torch.float32
    assert torch.equal(dx.double(), expected_dx)
    torch.testing.assert_close(dbound.double(), expected_dbound, rtol=1e-6, atol=1e-6)


def test_empty_batch(device):
    dx, dbound = backward.clamp_bound_backward(
        torch.empty(0, 4, device=device), torch.empty(0, 4, device=device), torch.ones(4, device=device)
    )
    assert dx.shape == (0, 4)
    assert dbound.tolist() == [0.0] * 4


def test_gradient_of_another_shape_is_refused(device):
    with pytest.raises(ValueError, match=r"gradient is .*\(2, 4\)"):
        backward.clamp_bound_backward(
            torch.ones(2, 4, device=device), torch.ones(3, 4, device=device), torch.ones(4, device=device)
        )


def test_autograd_function_differentiates(randn):
    x, bound = randn((6, 4), torch.float32, 0).requires_grad_(), randn((4,), torch.float32, 1).requires_grad_()
    y = backward.clamp_bound(x, bound)
    assert torch.equal(y, clamp_bound_ref(x, bound))
    grad = randn((6, 4), torch.float32, 2)
    dx, dbound = torch.autograd.grad(y, (x, bound), grad)
    expected = _autograd(x, bound, grad)
    assert torch.equal(dx.double(), expected[0])
    torch.testing.assert_close(dbound.double(), expected[1], rtol=1e-6, atol=1e-6)
