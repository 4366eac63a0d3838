"""The implicit matrix product: every shipped tile, both loaders, and images of few channels."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton")

from unit_fast.kernels import implicit_gemm
from unit_fast.kernels.checks import conv_size
from unit_fast.kernels.configs import CONV2D
from unit_fast.kernels.conv2d import conv2d
from unit_fast.kernels.launch import capability_of
from unit_fast.kernels.reference import conv2d_ref

# bfloat16 on a GPU only: the interpreter's bfloat16 products are wrong (Triton 3.6 and 3.9)
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [8, 40, 64], ids=["flat", "by_tap_ragged", "by_tap"])
@pytest.mark.parametrize("config", dict.fromkeys(c for table in CONV2D.values() for c in table), ids=str)
def test_every_shipped_tile(config, channels, dtype, randn, agree):
    n = config.block_n + 8
    x, weight = randn((2, channels, 6, 7), dtype, 0), randn((n, channels, 3, 3), dtype, 1, (9 * channels) ** -0.5)
    bias, residual, bound = randn((n,), dtype, 2), randn((2, n, 6, 7), dtype, 3), randn((n, 6, 7), dtype, 4)
    arguments = (x, weight, bias, residual, bound, (1, 1), (1, 1), (1, 1), 1, "relu")
    if config.loader == "tma" and (channels != 64 or capability_of(x) < 90):
        with pytest.raises(ValueError, match="take a pointer configuration"):
            conv2d(*arguments, config=config)
    else:
        agree(conv2d(*arguments, config=config), conv2d_ref, *arguments)


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation"),
    [
        ((3, 3), (1, 1), (1, 1)),
        ((3, 3), (2, 2), (2, 2)),
        ((5, 1), (0, 1), (1, 1)),
        ((1, 7), (0, 3), (1, 1)),
        ((1, 1), (1, 1), (1, 1)),
    ],
    ids=["3x3", "dilated", "5x1", "1x7", "padded_1x1"],
)
@pytest.mark.parametrize("size", [(9, 9), (5, 4)], ids=["map", "small_map"])
def test_tma_reads_patches(size, kernel, padding, dilation, randn, agree, device):
    x, weight = randn((2, 64, *size), torch.float16, 0), randn((24, 64, *kernel), torch.float16, 1, 0.05)
    if capability_of(x) < 90:
        pytest.skip("TMA needs compute capability 9.0")
    p, q = (conv_size(size[i], kernel[i], 1, padding[i], dilation[i]) for i in (0, 1))
    bias, residual, bound = (
        randn((24,), torch.float16, 2),
        randn((2, 24, p, q), torch.float16, 3),
        randn((24, p, q), torch.float16, 4),
    )
    counts = torch.zeros(2, dtype=torch.int32, device=device)
    arguments = (x, weight, bias, residual, bound, (1, 1), padding, dilation, 1, "relu")
    config = next(c for c in CONV2D[90] if c.loader == "tma" and c.block_m == 64)
    agree(conv2d(*arguments, config=config, counts=counts), conv2d_ref, *arguments)
    unclamped = conv2d(*arguments[:4], None, *arguments[5:], config=config)
    assert torch.equal(counts, (unclamped > bound).flatten(1).sum(1).int())


@pytest.mark.parametrize("channels", [8, 9, 16], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_few_channels_are_padded_and_their_taps_kept_apart(channels, stride, randn, agree):
    x, weight = randn((2, channels, 11, 9), torch.float16, 0), randn((8, channels, 5, 3), torch.float16, 1, 0.2)
    arguments = (x, weight, None, None, None, (stride, 1), (2, 1), (1, 2))
    agree(conv2d(*arguments), conv2d_ref, *arguments)


@pytest.mark.parametrize(
    ("channels", "size", "stride", "loader"),
    [
        pytest.param(64, 14, 1, "tma", id="whole_blocks_of_channels"),
        pytest.param(64, 14, 2, "pointer", id="stride"),
        pytest.param(72, 14, 1, "pointer", id="ragged_channels"),
        pytest.param(64, 4, 1, "pointer", id="map_smaller_than_a_patch"),
        pytest.param(8, 14, 1, "pointer", id="few_channels"),
    ],
)
def test_loader_suits_the_shape(channels, size, stride, loader, monkeypatch, device):
    x = torch.zeros(2, channels, size, size, device=device, dtype=torch.float16)
    if capability_of(x) < 90:
        pytest.skip("TMA needs compute capability 9.0")
    chosen = []
    fitting = implicit_gemm.fitting
    monkeypatch.setattr(
        implicit_gemm, "fitting", lambda *args, **kwargs: chosen.extend(found := fitting(*args, **kwargs)) or found
    )
    conv2d(
        x,
        torch.zeros(64, channels, 3, 3, device=device, dtype=torch.float16),
        None,
        None,
        None,
        (stride, stride),
        (1, 1),
    )
    assert {config.loader for config in chosen} == ({"tma", "pointer"} if loader == "tma" else {"pointer"})
