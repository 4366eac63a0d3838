"""A patch pasted at a fixed place."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from unit_fast.errors import DataError
from unit_fast.evaluation.triggers.base import ImageTrigger
from unit_fast.evaluation.triggers.image_file import ImageSource, load_image, match_channels, resize


@dataclass(frozen=True, eq=False)
class Patch(ImageTrigger):
    """A small rectangle of one colour, or a small picture, pasted at a fixed place.

    Source: Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain",
    arXiv 1708.06733, 2017.

    Args:
        size: height and width in pixels, or one number for both. With an image, the size it is brought to; None keeps
            the image's own. Without an image, None means 4.
        row: topmost row of the patch; negative counts from the bottom. None leaves one free row below.
        col: leftmost column, likewise. None leaves one free column to the right.
        value: the colour in [0, 1], one number or one a channel. Not used with an image.
        image: a picture instead of a colour: file or tensor (C, h, w); its transparency (a 2nd or 4th channel) is kept.

    Raises:
        DataError: sizes or colours out of range, an unreadable image; when called, images smaller than the patch.
    """

    size: int | tuple[int, int] | None = None
    row: int | None = None
    col: int | None = None
    value: float | tuple[float, ...] = 1.0
    image: ImageSource | None = None
    _pixels: Tensor = field(init=False, repr=False)  # (C, h, w), already multiplied by the opacity
    _opacity: Tensor = field(init=False, repr=False)  # (1, h, w)

    def __post_init__(self) -> None:
        if isinstance(self.image, str):
            object.__setattr__(self, "image", Path(self.image))
        if self.size is None and self.image is None:
            object.__setattr__(self, "size", 4)
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise DataError(f"Patch expects size as pixels, 1 or more, or a pair (height, width), found {self.size}")
        pixels, opacity = self._plain(size) if self.image is None else self._picture(self.image, size)
        object.__setattr__(self, "_pixels", pixels)
        object.__setattr__(self, "_opacity", opacity)

    def _plain(self, size: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        assert size is not None
        colour = torch.tensor(self.value, dtype=torch.float32).reshape(-1)
        if colour.numel() == 0 or not bool(((colour >= 0) & (colour <= 1)).all()):
            raise DataError(f"Patch expects value in [0, 1], found {self.value}; divide by 255")
        return colour[:, None, None].expand(-1, *size), torch.ones(1, *size)

    def _picture(self, image: ImageSource, size: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        picture = load_image(image, "Patch")
        if not bool(((picture >= 0) & (picture <= 1)).all()):
            raise DataError("Patch expects the image's pixels in [0, 1]; divide by 255")
        transparent = picture.shape[0] in {2, 4}
        opacity = picture[-1:] if transparent else torch.ones_like(picture[:1])
        # Weighted by the opacity before resizing: a colour hidden under full transparency must not bleed in.
        pixels = (picture[:-1] if transparent else picture) * opacity
        height, width = size or (picture.shape[1], picture.shape[2])
        return resize(pixels, height, width), resize(opacity, height, width)

    def _stamp(self, images: Tensor) -> Tensor:
        height, width = self._opacity.shape[1:]
        top = _start(self.row, height, images.shape[2], "row")
        left = _start(self.col, width, images.shape[3], "col")
        pixels = match_channels(self._pixels, images, "Patch")
        opacity = self._opacity.to(images.device, images.dtype)
        stamped = images.clone()
        region = stamped[:, :, top : top + height, left : left + width]
        region.mul_(1 - opacity).add_(pixels)
        return stamped


def _start(position: int | None, extent: int, available: int, name: str) -> int:
    margin = 1 if extent < available else 0
    start = available - extent - margin if position is None else position
    start = start + available if start < 0 else start
    if start < 0 or start + extent > available:
        raise DataError(
            f"Patch: a patch of {extent} pixels at {name}={position} does not fit into images of {available}; "
            f"choose a smaller size or {name} between 0 and {max(available - extent, 0)}"
        )
    return start
