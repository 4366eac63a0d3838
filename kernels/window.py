"""Where the window of an output position begins in the image that a convolution walks over."""
# A kernel's arguments are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def window_of(
    first,  # int64, a row of the output
    local,  # (BLOCK_M,) int32, the tile's rows, counted from first
    row_ok,
    out_rows,  # P·Q, rows of the output a sample
    Q,
    image_size,  # elements an image
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
):
    """For each row the offset of its image, 64-bit, and the height and width in it at which its window begins.

    Rows past the end read the first one: their results are never stored, and no address is out of bounds.
    """
    rows = tl.where(row_ok, local, 0) + (first % out_rows).to(tl.int32)
    image = (first // out_rows + rows // out_rows) * image_size
    within = rows % out_rows
    return image, (within // Q) * STRIDE_H - PAD_H, (within % Q) * STRIDE_W - PAD_W
