"""Max pooling is torch's, value by value: NaN, padding, ceilings and all."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from unit_fast.kernels import pooling
from unit_fast.kernels.checks import check_max_pool2d
from unit_fast.kernels.configs import activation_constants
from unit_fast.kernels.layout import pack_bound
from unit_fast.kernels.pooling import images_a_program, keeps_order, max_pool2d
from unit_fast.kernels.reference import ACTIVATION_DEFAULTS, activate_ref, max_pool2d_ref

DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [3, 24, 70])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "ceil_mode"),
    [
        pytest.param((3, 3), (2, 2), (1, 1), (1, 1), False, id="resnet"),
        pytest.param((2, 2), (2, 2), (0, 0), (1, 1), False, id="vgg"),
        pytest.param((3, 2), (1, 3), (1, 1), (2, 1), True, id="uneven"),
    ],
)
def test_values_are_torch_s(kernel, stride, padding, dilation, ceil_mode, channels, dtype, randn):
    x = randn((2, channels, 9, 8), dtype, 0)
    expected = F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
    for laid_out in (x, x.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(max_pool2d(laid_out, None, None, kernel, stride, padding, dilation, ceil_mode), expected)


@pytest.mark.parametrize("bound", [(), (24, 1, 1), (24, 9, 8), (1, 9, 1)], ids=str)
@pytest.mark.parametrize("act", ACTIVATION_DEFAULTS)
def test_an_epilogue_on_every_value_that_is_read(act, bound, randn, agree):
    x = randn((2, 24, 9, 8), torch.float16, 0).contiguous(memory_format=torch.channels_last)
    bias, limit = randn((24,), torch.float16, 1), pack_bound(randn(bound, torch.float16, 2).abs())
    arguments = (x, bias, limit, (3, 3), (2, 2), (1, 1), (1, 1), False, act)
    agree(max_pool2d(*arguments), max_pool2d_ref, *arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "images"), [(4, 4), (7, 4), (9, 8)], ids=str)
def test_bounds_are_read_once_for_several_images(batch, images, dtype, randn, agree, monkeypatch, launches):
    monkeypatch.setattr(pooling, "ENOUGH_PROGRAMS", 1)
    launched = launches(pooling, "_max_pool2d_kernel")
    x = randn((batch, 24, 9, 8), dtype, 0).contiguous(memory_format=torch.channels_last)
    bias, bound = randn((24,), dtype, 1), pack_bound(randn((24, 9, 8), dtype, 2))
    arguments = (x, bias, bound, (3, 3), (2, 2), (1, 1), (1, 1), False, "silu")
    agree(max_pool2d(*arguments), max_pool2d_ref, *arguments)
    assert [options["IMAGES"] for _, options in launched] == [images]


@pytest.mark.parametrize(
    ("tiles", "batch", "taps", "images"),
    [
        pytest.param(196, 256, 9, 8, id="many"),
        pytest.param(196, 32, 9, 2, id="some"),
        pytest.param(196, 1, 9, 1, id="few programs"),
        pytest.param(196, 256, 25, 1, id="more bounds than registers"),
    ],
)
def test_images_a_program(tiles, batch, taps, images):
    assert images_a_program(tiles, batch, taps) == images


@examples(200)
@given(
    act=st.sampled_from(sorted(ACTIVATION_DEFAULTS)),
    alpha=st.floats(-2, 2) | st.sampled_from([0.0, 1e-46, 1e-40, 1e38, 1e39, math.inf]),
    values=st.tuples(*[st.floats(-5, 5) | st.sampled_from([-math.inf, math.inf])] * 2),
)
def test_what_keeps_order_does(act, alpha, values):
    name, default, _ = activation_constants(act, ())
    args = (alpha,) if act in ("leaky_relu", "elu") else ()
    if keeps_order(name, alpha if args else default):
        low, high = (activate_ref(torch.tensor(value), act, args) for value in sorted(values))
        assert low <= high


@pytest.mark.parametrize("act", ["relu", "elu", "gelu"])
@pytest.mark.parametrize("bound", [None, (4, 1, 1), (4, 2, 2)], ids=["no bound", "channel", "neuron"])
def test_a_window_that_reads_nothing_is_as_torch_has_it(bound, act, device):
    """Dilated windows can have all of their taps in the padding."""
    x = torch.zeros(2, 4, 2, 2, device=device).contiguous(memory_format=torch.channels_last)
    limit = None if bound is None else torch.ones(bound, device=device)
    window = ((2, 2), (1, 1), (1, 1), (3, 3))
    expected = max_pool2d_ref(x, None, limit, *window, False, act)
    assert expected.isinf().any()
    assert torch.equal(max_pool2d(x, None, limit, *window, False, act), expected)


def test_a_bound_a_row_of_a_single_column_of_a_single_channel_clamps(device):
    x, bound = torch.zeros(2, 1, 5, 1, device=device), torch.arange(-9.0, -4.0, device=device).view(1, 5, 1)
    assert torch.equal(max_pool2d(x, None, bound, (1, 1)), bound.expand(2, 1, 5, 1))


@pytest.mark.parametrize("alpha", [0.0, 1e-55, math.inf])
def test_a_slope_that_makes_nan_of_infinity_is_seen(alpha, device):
    x = torch.tensor([-math.inf, 1.0, 0.0, 1.0], device=device).view(1, 1, 1, 4)
    arguments = (x, None, None, (1, 2), (1, 1), (0, 0), (1, 1), False, "leaky_relu", (alpha,))
    torch.testing.assert_close(max_pool2d(*arguments), max_pool2d_ref(*arguments), rtol=0, atol=0, equal_nan=True)


def test_nan_and_infinities_are_torch_s(device):
    x = torch.tensor([1.0, math.nan, -math.inf, math.inf, -2.0, 0.0, -math.inf, -math.inf, 5.0], device=device)
    x = x.view(1, 1, 3, 3).contiguous(memory_format=torch.channels_last)
    for kernel in ((2, 2), (1, 2), (3, 3)):
        expected = F.max_pool2d(x, kernel, 1)
        torch.testing.assert_close(max_pool2d(x, None, None, kernel), expected, rtol=0, atol=0, equal_nan=True)


@examples(200)
@given(
    size=st.integers(1, 20),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 5),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 3),
    ceil_mode=st.booleans(),
)
def test_the_output_s_size_is_torch_s(size, kernel, stride, padding, dilation, ceil_mode):
    window = ((kernel, 1), (stride, 1), (padding, 0), (dilation, 1), ceil_mode)
    x = torch.zeros(1, 1, size, 1)
    try:
        expected = F.max_pool2d(x, *window).shape
    except RuntimeError:  # padding of more than half a window, or no window at all
        return
    assert check_max_pool2d(x, None, None, *window) == tuple(expected)


def test_no_samples_give_no_samples(device):
    assert max_pool2d(torch.zeros(0, 4, 6, 6, device=device), None, None, (2, 2), (2, 2)).shape == (0, 4, 3, 3)


@pytest.mark.parametrize(
    ("shape", "kernel", "words"),
    [
        pytest.param((2, 4, 4), (2, 2), "expected \\(B, C, H, W\\) and pairs", id="no batch"),
        pytest.param((2, 4, 4, 4), (2,), "and pairs", id="no pair"),
        pytest.param((2, 4, 4, 4), (5, 5), "does not fit a map", id="too large"),
        pytest.param((2, 4, 9, 9), (6, 6), "more than 25 positions", id="too many taps"),
    ],
)
def test_what_does_not_fit_is_refused(shape, kernel, words):
    with pytest.raises(ValueError, match=words):
        max_pool2d(torch.zeros(shape), None, None, kernel)


def test_saturation_is_not_counted(device):
    x = torch.zeros(2, 4, 4, 4, device=device)
    with pytest.raises(ValueError, match="counts no saturation"):
        max_pool2d(x, None, torch.ones((), device=device), (2, 2), counts=torch.zeros(2, dtype=torch.int32))
