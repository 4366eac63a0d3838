"""Where windows begin, for every row of a tile, against a walk over all positions."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton")

import triton
import triton.language as tl

from unit_fast.kernels import window

window_of = window.window_of


@triton.jit
def write_windows(
    out_ptr, first, M, out_rows, Q, image_size, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr,
    PAD_W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    local = tl.arange(0, BLOCK)
    first = tl.cast(first, tl.int64)
    image, h, w = window_of(
        first, local, local < M - first, out_rows, Q, image_size, STRIDE_H, STRIDE_W, PAD_H, PAD_W
    )  # fmt: skip
    tl.store(out_ptr + local, image)
    tl.store(out_ptr + BLOCK + local, h.to(tl.int64))
    tl.store(out_ptr + 2 * BLOCK + local, w.to(tl.int64))


@pytest.mark.parametrize(("stride", "padding"), [((1, 1), (0, 0)), ((2, 1), (1, 0)), ((2, 3), (3, 2))], ids=str)
@pytest.mark.parametrize("first", [0, 16, 32], ids=["first_tile", "across_images", "last_tile"])
def test_windows_of_a_tile(first, stride, padding, device):
    images, p, q, size, block = 3, 4, 3, 10**9, 16  # 36 rows; offsets of images exceed 32 bits
    out = torch.zeros(3, block, dtype=torch.int64, device=device)
    write_windows[(1,)](out, first, images * p * q, p * q, q, size, *stride, *padding, BLOCK=block)
    every = [
        (image * size, row * stride[0] - padding[0], col * stride[1] - padding[1])
        for image in range(images)
        for row in range(p)
        for col in range(q)
    ]
    beyond = first + block - len(every)
    expected = every[first : first + block] + [every[first]] * max(0, beyond)
    assert out.T.tolist() == [list(place) for place in expected]
