"""The eager references against formulas written out here in float64 numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unit_fast.kernels.reference import (
    ACTIVATION_DEFAULTS,
    activate_ref,
    conv2d_ref,
    epilogue_ref,
    linear_ref,
    memory_format_of,
)

erf = np.vectorize(math.erf)
FORMULAS = {
    "identity": lambda v: v,
    "relu": lambda v: np.maximum(v, 0),
    "relu6": lambda v: np.clip(v, 0, 6),
    "hardtanh": lambda v, low=-1.0, high=1.0: np.clip(v, low, high),
    "leaky_relu": lambda v, slope=0.01: np.where(v > 0, v, slope * v),
    "elu": lambda v, alpha=1.0: np.where(v > 0, v, alpha * np.expm1(np.minimum(v, 0))),
    "gelu": lambda v: 0.5 * v * (1 + erf(v / math.sqrt(2))),
    "gelu_tanh": lambda v: 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    "silu": lambda v: v / (1 + np.exp(-v)),
    "hardswish": lambda v: v * np.clip(v + 3, 0, 6) / 6,
}
OTHER_ARGUMENTS = {"hardtanh": (-0.5, 2.0), "leaky_relu": (0.3,), "elu": (1.7,)}


def test_every_activation_has_a_formula_here():
    assert FORMULAS.keys() == ACTIVATION_DEFAULTS.keys()


@pytest.mark.parametrize("act", FORMULAS)
@pytest.mark.parametrize("own_arguments", [False, True], ids=["defaults", "arguments"])
def test_activation_follows_its_formula(act, own_arguments):
    args = OTHER_ARGUMENTS.get(act, ()) if own_arguments else ()
    v = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    np.testing.assert_allclose(activate_ref(v, act, args).numpy(), FORMULAS[act](v.numpy(), *args), atol=1e-12)


@pytest.mark.parametrize("act", FORMULAS)
def test_activation_keeps_nan(act):
    assert activate_ref(torch.tensor([math.nan]), act).isnan().all()


def test_epilogue_order_is_scale_bias_residual_activation_bound():
    x, scale, bias, residual = (torch.tensor([[v]]) for v in (3.0, 2.0, 1.0, -10.0))
    one = lambda **kwargs: epilogue_ref(x, **kwargs).item()  # noqa: E731 - a name for readability
    assert one(scale=scale[0]) == 6.0
    assert one(scale=scale[0], bias=bias[0]) == 7.0
    assert one(scale=scale[0], bias=bias[0], residual=residual) == -3.0
    assert one(scale=scale[0], bias=bias[0], residual=residual, act="relu") == 0.0
    assert one(scale=scale[0], bias=bias[0], act="relu", bound=torch.tensor(4.0)) == 4.0
    assert one(act="relu", bound=torch.tensor(-1.0)) == -1.0  # the bound comes last


def test_epilogue_rounds_half_precision_once():
    # 2048 + 1 is not a float16; rounding after the bias would lose the 1 that the residual completes to 2
    x, one = torch.full((1, 1), 2048.0, dtype=torch.float16), torch.ones(1, 1, dtype=torch.float16)
    assert epilogue_ref(x, bias=one[0], residual=one).item() == 2050.0


def test_epilogue_never_returns_its_input():
    x = torch.ones(2, 3)
    y = epilogue_ref(x)
    y.zero_()
    assert torch.equal(x, torch.ones(2, 3))


@pytest.mark.parametrize("x_shape", [(5, 7), (2, 5, 7)], ids=["rows", "tokens"])
@pytest.mark.parametrize("bias_dtype", [torch.float64, torch.float32], ids=str)
def test_linear_follows_its_formula(x_shape, bias_dtype):
    torch.manual_seed(0)
    x, w = torch.randn(x_shape, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    bias, bound = torch.randn(4).to(bias_dtype), torch.rand(4, dtype=torch.float64)
    residual = torch.randn(*x_shape[:-1], 4, dtype=torch.float64)
    expected = x.numpy() @ w.numpy().T + bias.double().numpy() + residual.numpy()
    expected = np.minimum(np.maximum(expected, 0), bound.numpy())
    np.testing.assert_allclose(linear_ref(x, w, bias, residual, bound, "relu").numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [((1, 1), (0, 0), (1, 1), 1), ((2, 1), (1, 2), (1, 2), 1), ((1, 1), (1, 1), (1, 1), 2)],
    ids=["plain", "uneven", "grouped"],
)
def test_conv2d_follows_its_formula(stride, padding, dilation, groups):
    torch.manual_seed(0)
    x, w = torch.randn(2, 4, 6, 7, dtype=torch.float64), torch.randn(6, 4 // groups, 3, 2, dtype=torch.float64)
    bias = torch.randn(6, dtype=torch.float64)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    p = (padded.shape[2] - dilation[0] * 2 - 1) // stride[0] + 1
    q = (padded.shape[3] - dilation[1] - 1) // stride[1] + 1
    expected = np.zeros((2, 6, p, q))
    for n, c, r, s in np.ndindex(6, 4 // groups, 3, 2):
        plane = padded[:, n // (6 // groups) * (4 // groups) + c, r * dilation[0] :, s * dilation[1] :]
        expected[:, n] += w[n, c, r, s].item() * plane[:, :: stride[0], :: stride[1]][:, :p, :q]
    bound = torch.rand(6, p, q, dtype=torch.float64)
    residual = torch.randn(2, 6, p, q, dtype=torch.float64)
    expected = np.minimum(np.maximum(expected + bias.numpy()[:, None, None] + residual.numpy(), 0), bound.numpy())
    y = conv2d_ref(x, w, bias, residual, bound, stride, padding, dilation, groups, "relu")
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-12)


def test_memory_format_is_channels_last_when_an_operand_clearly_is():
    plain, last = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    both = torch.zeros(2, 3, 1, 1)
    assert memory_format_of(plain, plain) is torch.contiguous_format
    assert memory_format_of(plain, last) is torch.channels_last
    assert memory_format_of(last) is torch.channels_last
    assert memory_format_of(both) is torch.contiguous_format
    assert memory_format_of(torch.zeros(2, 3)) is torch.contiguous_format
