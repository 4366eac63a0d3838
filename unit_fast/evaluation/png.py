"""Example images as PNG, without an imaging library."""

import struct
import zlib

import torch.nn.functional as F
from torch import Tensor


def encode_png(image: Tensor, longest_side: int = 128) -> bytes:
    """Encode pixels as an 8-bit PNG.

    Args:
        image: (C, H, W) in [0, 1]; C is 1 (grey) or 3 (RGB). Values outside are cut off.
        longest_side: larger images are shrunk to this many pixels.

    Returns:
        The file's bytes: the same pixels give the same bytes.
    """
    if image.shape[0] not in {1, 3}:
        raise ValueError(f"expected 1 or 3 channels, found {image.shape[0]}")
    pixels = image.detach().to("cpu").float().clamp(0, 1)
    if max(pixels.shape[1:]) > longest_side:
        scale = longest_side / max(pixels.shape[1:])
        size = [max(1, round(side * scale)) for side in pixels.shape[1:]]
        pixels = F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    _, height, width = pixels.shape
    rows = (pixels * 255).round().byte().permute(1, 2, 0).reshape(height, -1).numpy()
    raw = b"".join(b"\0" + row.tobytes() for row in rows)  # filter type 0 before every row
    colour_type = 2 if pixels.shape[0] == 3 else 0
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
