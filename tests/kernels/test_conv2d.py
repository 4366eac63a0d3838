"""The convolution kernels against the float64 reference: geometries, odd sizes, layouts, every epilogue operand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

pytest.importorskip("triton", reason="the kernels need Triton")

from tests.properties import examples
from unit_fast.kernels import conv2d as module
from unit_fast.kernels.checks import conv_size
from unit_fast.kernels.configs import LINEAR
from unit_fast.kernels.conv2d import conv2d
from unit_fast.kernels.layout import pack_bound, pack_weight
from unit_fast.kernels.reference import ACTIVATION_DEFAULTS, conv2d_ref, memory_format_of

# bfloat16 on a GPU only: the interpreter's bfloat16 products are wrong (Triton 3.6 and 3.9)
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])]
NHWC = torch.channels_last
pairs = st.tuples(st.integers(1, 2), st.integers(1, 2))


@examples(60)
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_any_combination_agrees_with_the_reference(data, dtype, randn, agree, device):
    batch, height, width = data.draw(st.sampled_from([(1, 1, 1), (2, 5, 7), (3, 6, 4), (1, 9, 9)]), label="batch, map")
    c = data.draw(st.sampled_from([1, 3, 5, 16, 24, 37, 64, 72]), label="channels")
    depthwise = data.draw(st.booleans(), label="depthwise") and c > 1
    n = c if depthwise else data.draw(st.sampled_from([1, 10, 40, 65]), label="outputs")
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 5)), label="kernel")
    stride, dilation = data.draw(pairs, label="stride"), data.draw(pairs, label="dilation")
    padding = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)), label="padding")
    geometry = list(zip((height, width), kernel, stride, padding, dilation, strict=True))
    p, q = (conv_size(*axis) for axis in geometry)
    assume(p > 0 and q > 0)
    groups = c if depthwise else 1
    inner = c // groups * math.prod(kernel)
    x, weight = randn((batch, c, height, width), dtype, 0), randn((n, c // groups, *kernel), dtype, 1, inner**-0.5)
    if data.draw(st.booleans(), label="channels_last"):
        x, weight = x.to(memory_format=NHWC), pack_weight(weight, groups)
    shapes = [(), (n, 1, 1), (n, p, q), (1, p, 1), (q,)]
    bound_shape = data.draw(st.none() | st.sampled_from(shapes), label="bound")
    bias = randn((n,), dtype, 2) if data.draw(st.booleans(), label="bias") else None
    residual = randn((batch, n, p, q), dtype, 3) if data.draw(st.booleans(), label="residual") else None
    bound = None if bound_shape is None else randn(bound_shape, dtype, 4)
    act = data.draw(st.sampled_from(sorted(ACTIVATION_DEFAULTS)), label="act")
    settings_ = (stride, padding, dilation, groups, act)
    counts = torch.zeros(batch, dtype=torch.int32, device=device) if bound is not None else None
    y = conv2d(x, weight, bias, residual, bound, *settings_, counts=counts)
    assert y.is_contiguous(memory_format=memory_format_of(x, weight))
    agree(y, conv2d_ref, x, weight, bias, residual, bound, *settings_)
    if bound is not None:
        above = conv2d(x, weight, bias, residual, None, *settings_) > bound
        assert torch.equal(counts, above.flatten(1).sum(1).int())


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 3)], ids=str)
@pytest.mark.parametrize("config", [c for c in LINEAR[90] if c.block_m == 64], ids=str)
def test_one_by_one_is_a_matrix_product(stride, config, randn, agree):
    if config.loader != "pointer" and stride != (1, 1):
        pytest.skip("only pointers follow a stride")
    x, weight = (
        randn((3, 24, 7, 8), torch.float16, 0).to(memory_format=NHWC),
        randn((40, 24, 1, 1), torch.float16, 1, 0.2),
    )
    p, q = conv_size(7, 1, stride[0], 0, 1), conv_size(8, 1, stride[1], 0, 1)
    residual, bound = randn((3, 40, p, q), torch.float16, 2), randn((40, p, q), torch.float16, 3)
    arguments = (x, weight, None, residual, bound, stride, (0, 0), (1, 1), 1, "relu")
    agree(conv2d(*arguments, config=config), conv2d_ref, *arguments)


@pytest.mark.parametrize(("groups", "outputs"), [(2, 6), (4, 8)], ids=["grouped", "depthwise_with_multiplier"])
def test_other_groups_take_torchs_convolution(groups, outputs, randn, agree):
    x, weight = randn((2, 4, 5, 5), torch.float32, 0), randn((outputs, 4 // groups, 3, 3), torch.float32, 1, 0.2)
    bias, bound = randn((outputs,), torch.float32, 2), randn((outputs, 3, 3), torch.float32, 3)
    arguments = (x, weight, bias, None, bound, (1, 1), (0, 0), (1, 1), groups, "relu")
    agree(conv2d(*arguments), conv2d_ref, *arguments)


@pytest.mark.parametrize("channels", [3, 8, 24], ids=["stem", "flat", "by_tap"])
@pytest.mark.parametrize("groups", ["one", "each"])
def test_padding_reads_zeros_not_neighbours(channels, groups, device):
    """With ones everywhere and a kernel of ones, each output counts the taps that lie inside the image."""
    groups = 1 if groups == "one" else channels
    x = torch.ones(2, channels, 4, 4, device=device)
    weight = torch.ones(channels, channels // groups, 3, 3, device=device)
    y = conv2d(x, weight, padding=(1, 1), groups=groups)
    edge = torch.tensor([2.0, 3.0, 3.0, 2.0], device=device)
    assert torch.equal(y, (edge[:, None] * edge * channels / groups).expand(2, channels, 4, 4))


@pytest.mark.parametrize("channels", [3, 8, 24], ids=["stem", "flat", "by_tap"])
def test_nan_in_one_image_stays_there(channels, device):
    x = torch.zeros(3, channels, 5, 5, device=device)
    x[1] = math.nan
    y = conv2d(x, torch.ones(8, channels, 3, 3, device=device), bound=torch.ones(8, 3, 3, device=device), act="relu")
    assert y[1].isnan().all()
    assert torch.equal(y[::2], torch.zeros_like(y[::2]))


def test_packed_operands_are_not_copied(monkeypatch, randn):
    x, weight = (
        randn((2, 40, 6, 6), torch.float32, 0).to(memory_format=NHWC),
        pack_weight(randn((24, 40, 3, 3), torch.float32, 1)),
    )
    bound, residual = pack_bound(randn((24, 4, 4), torch.float32, 2)), randn((2, 24, 4, 4), torch.float32, 3)
    residual = residual.to(memory_format=NHWC)
    seen = {}

    def record(*arguments: object) -> None:
        seen.update(zip(("x", "weight", "out", "geometry", "tail"), arguments, strict=False))

    monkeypatch.setattr(module, "implicit_product", record)
    conv2d(x, weight, None, residual, bound)
    assert seen["x"].data_ptr() == x.data_ptr()
    assert seen["weight"].data_ptr() == weight.data_ptr()
    assert seen["tail"].residual.data_ptr() == residual.data_ptr()
    assert seen["tail"].bound.values.data_ptr() == bound.data_ptr()


@pytest.mark.parametrize(("channels", "kernel"), [(3, 3), (24, 3), (24, 1)], ids=["stem", "by_tap", "1x1"])
def test_a_bound_a_row_of_a_single_column_of_a_single_channel_clamps(channels, kernel, device):
    x, weight = torch.zeros(2, channels, 5, 1, device=device), torch.ones(1, channels, kernel, 1, device=device)
    bound = torch.arange(-9.0, -4.0, device=device).view(1, 5, 1)
    y = conv2d(x, weight, None, None, bound, (1, 1), (kernel // 2, 0))
    assert torch.equal(y, bound.expand(2, 1, 5, 1))


def test_empty_batch(device):
    y = conv2d(torch.empty(0, 4, 5, 5, device=device), torch.empty(3, 4, 3, 3, device=device))
    assert y.shape == (0, 3, 3, 3)


@pytest.mark.parametrize(("c", "n"), [(1, 2**17), (2**17, 1)], ids=["output", "input"])
def test_sample_above_two_to_the_31_is_refused(c, n, device):
    x = torch.empty(1, c, 1, 1, device=device).expand(1, c, 128, 128)
    with pytest.raises(ValueError, match="2³¹"):
        conv2d(x, torch.empty(n, c, 1, 1, device=device))


def test_more_rows_than_coordinates_are_refused(device):
    with pytest.raises(ValueError, match="split the batch"):
        conv2d(torch.empty(1, 4, 8, 8, device=device).expand(2**25, 4, 8, 8), torch.empty(3, 4, 1, 1, device=device))
