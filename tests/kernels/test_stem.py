"""Convolutions of images of few channels: every shipped tile, packed images, patches that are read where they lie."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton")

from unit_fast.kernels import stem
from unit_fast.kernels.checks import conv_size
from unit_fast.kernels.configs import CONV2D, STEM
from unit_fast.kernels.conv2d import conv2d
from unit_fast.kernels.reference import conv2d_ref

# bfloat16 on a GPU only: the interpreter's bfloat16 products are wrong (Triton 3.6 and 3.9)
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])]
NHWC = torch.channels_last


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", dict.fromkeys(c for table in STEM.values() for c in table), ids=str)
def test_every_shipped_tile(config, dtype, randn, agree, device):
    n = config.block_n + 8
    x, weight = randn((2, 3, 13, 15), dtype, 0).to(memory_format=NHWC), randn((n, 3, 7, 7), dtype, 1, 147**-0.5)
    bias, residual, bound = randn((n,), dtype, 2), randn((2, n, 7, 8), dtype, 3), randn((n, 7, 8), dtype, 4)
    arguments = (x, weight, bias, residual, bound, (2, 2), (3, 3), (1, 1), 1, "relu")
    counts = torch.zeros(2, dtype=torch.int32, device=device)
    agree(conv2d(*arguments, config=config, counts=counts), conv2d_ref, *arguments)
    unclamped = conv2d(*arguments[:4], None, *arguments[5:], config=config)
    assert torch.equal(counts, (unclamped > bound).flatten(1).sum(1).int())


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 7], ids=str)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        pytest.param((3, 3), (1, 1), (1, 1), (1, 1), id="3x3"),
        pytest.param((5, 3), (2, 1), (2, 1), (1, 2), id="dilated"),
        pytest.param((1, 1), (2, 3), (1, 2), (1, 1), id="padded_1x1"),
        pytest.param((2, 9), (3, 2), (0, 4), (2, 1), id="wide"),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, NHWC], ids=["nchw", "nhwc"])
def test_any_geometry(channels, kernel, stride, padding, dilation, layout, randn, agree):
    x = randn((2, channels, 12, 11), torch.float16, 0).to(memory_format=layout)
    weight = randn((8, channels, *kernel), torch.float16, 1, 0.2)
    arguments = (x, weight, None, None, None, stride, padding, dilation)
    agree(conv2d(*arguments), conv2d_ref, *arguments)


@pytest.mark.parametrize(
    ("size", "kernel", "settings", "in_place"),
    [
        pytest.param((32, 48), 16, {}, True, id="whole_blocks"),
        pytest.param((32, 48), 4, {}, True, id="smaller_blocks"),
        pytest.param((33, 48), 16, {}, True, id="rows_left_over"),
        pytest.param((32, 46), 16, {}, False, id="rows_that_begin_in_between"),
        pytest.param((24, 24), 3, {}, False, id="runs_that_begin_in_between"),
        pytest.param((24, 40), 2, {}, False, id="no_blocks"),
        pytest.param((32, 48), 16, {"padding": (8, 8)}, False, id="padding"),
        pytest.param((32, 48), 16, {"dilation": (1, 2)}, False, id="dilation"),
        pytest.param((32, 48), 16, {"dilation": (2, 1)}, True, id="rows_apart"),
        pytest.param((32, 48), 16, {"layout": torch.contiguous_format}, False, id="nchw"),
    ],
)
def test_patches_are_read_where_they_lie(size, kernel, settings, in_place, randn, agree, monkeypatch):
    packed = []
    pack = stem._packed
    monkeypatch.setattr(stem, "_packed", lambda *args: packed.append(args) or pack(*args))
    x = randn((2, 3, *size), torch.float16, 0).to(memory_format=settings.get("layout", NHWC))
    weight = randn((24, 3, kernel, kernel), torch.float16, 1, 1 / (2 * kernel)).to(memory_format=NHWC)
    padding, dilation = settings.get("padding", (0, 0)), settings.get("dilation", (1, 1))
    p, q = (conv_size(size[i], kernel, kernel, padding[i], dilation[i]) for i in (0, 1))
    arguments = (x, weight, None, None, randn((24, p, q), torch.float16, 2), (kernel, kernel), padding, dilation)
    agree(conv2d(*arguments), conv2d_ref, *arguments)
    assert packed == [] if in_place else len(packed) == 1


def test_the_end_of_a_run_adds_nothing_even_where_its_window_begins_with_infinity(device):
    x = torch.zeros(1, 3, 5, 7, device=device, dtype=torch.float16)
    x[..., 2] = math.inf
    y = conv2d(x, torch.ones(4, 3, 3, 3, device=device, dtype=torch.float16))
    assert y.isinf().all(dim=1)[0].tolist() == [[True, True, True, False, False]] * 3
    assert not y.isnan().any()


def test_samples_whose_elements_lie_too_far_apart_are_copied_first(monkeypatch, randn, agree, launches):
    """Offsets within a sample are 32-bit."""
    launched = launches(stem, "_pack_kernel")
    x = randn((9, 9, 3, 2), torch.float16, 0).permute(3, 2, 0, 1)  # the batch innermost
    weight = randn((8, 3, 3, 3), torch.float16, 1, 0.2)
    agree(conv2d(x, weight), conv2d_ref, x, weight)
    monkeypatch.setattr(stem, "LARGEST_SAMPLE", 9 * 9 * 4)  # the packed image's own elements
    agree(conv2d(x, weight), conv2d_ref, x, weight)
    assert [y.is_contiguous(memory_format=NHWC) for y, _ in launched] == [False, True]


def test_a_packed_image_of_more_than_2_to_the_31_elements_is_refused(device):
    x = torch.empty(1, 1, 1, 1, device=device, dtype=torch.float16).expand(1, 1, 23_200, 23_200)
    with pytest.raises(ValueError, match="2³¹"):
        conv2d(x, torch.empty(1, 1, 3, 3, device=device, dtype=torch.float16), stride=(4, 4))


def test_a_tile_that_loads_by_tma_is_refused(device):
    config = next(c for c in CONV2D[90] if c.loader == "tma")
    with pytest.raises(ValueError, match="take a pointer configuration"):
        conv2d(torch.zeros(1, 3, 9, 9, device=device), torch.zeros(4, 3, 3, 3, device=device), config=config)


def test_what_lies_beside_a_window_is_not_in_its_sum(device):
    """A run is rounded up to a power of two: pixels that it reaches beyond its window count for nothing, even NaN."""
    x = torch.ones(1, 3, 6, 12, device=device, dtype=torch.float16)
    x[..., 7] = math.nan
    y = conv2d(x, torch.ones(4, 3, 3, 3, device=device, dtype=torch.float16))
    assert y[..., :5].eq(27).all()
    assert y[..., 5:8].isnan().all()
    assert y[..., 8:].eq(27).all()


@pytest.mark.parametrize(
    ("channels", "itemsize", "expected"), [(3, 2, True), (8, 2, False), (3, 4, True), (4, 4, False)]
)
def test_a_pixel_of_a_whole_load_is_no_stem(channels, itemsize, expected):
    assert stem.is_stem(channels, itemsize) is expected


@pytest.mark.parametrize(("channels", "taps", "span"), [(3, 7, 32), (3, 3, 16), (1, 3, 16), (3, 16, 64), (5, 3, 32)])
def test_a_run_is_whole_pixels_up_to_a_power_of_two(channels, taps, span):
    assert stem.span_of(channels, taps) == span
