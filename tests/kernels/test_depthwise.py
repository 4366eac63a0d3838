"""The depthwise kernel by itself: its tiles, and the weight layout it reads."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton")

from unit_fast.kernels.configs import DepthwiseConfig
from unit_fast.kernels.conv2d import conv2d
from unit_fast.kernels.layout import pack_weight
from unit_fast.kernels.reference import conv2d_ref

# bfloat16 on a GPU only: the interpreter's bfloat16 products are wrong (Triton 3.6 and 3.9)
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "config",
    [None, DepthwiseConfig(4, 16, 2), DepthwiseConfig(64, 32, 1), DepthwiseConfig(8, 32, 4)],
    ids=["shipped", "small", "tall", "long"],
)
@pytest.mark.parametrize("channels", [2, 24, 70])
def test_agrees_with_the_reference(config, channels, dtype, randn, agree):
    x, weight = randn((2, channels, 7, 6), dtype, 0), pack_weight(randn((channels, 1, 3, 3), dtype, 1, 1 / 3), channels)
    bias, residual, bound = (
        randn((channels,), dtype, 2),
        randn((2, channels, 4, 3), dtype, 3),
        randn((channels, 4, 3), dtype, 4),
    )
    arguments = (x, weight, bias, residual, bound, (2, 2), (1, 1), (1, 1), channels, "relu6")
    agree(conv2d(*arguments, config=config), conv2d_ref, *arguments)
