"""A picture laid over the whole image, half transparent."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from unit_fast.errors import DataError
from unit_fast.evaluation.triggers.base import ImageTrigger
from unit_fast.evaluation.triggers.image_file import ImageSource, load_image, match_channels, resize


@dataclass(frozen=True, eq=False)
class Blend(ImageTrigger):
    """(1 − ratio) · x + ratio · picture.

    Source: Chen, Liu, Li, Lu, Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning",
    arXiv 1712.05526, 2017 (blended injection).

    Args:
        image: the picture: a file, or a tensor (C, h, w) in [0, 1]. Brought to the size of the images.
        ratio: share of the picture, in [0, 1].

    Raises:
        DataError: a ratio out of range, an unreadable or transparent picture, one whose channels don't fit.
    """

    image: ImageSource
    ratio: float = 0.2
    _pixels: Tensor = field(init=False, repr=False)  # (C, h, w)

    def __post_init__(self) -> None:
        if isinstance(self.image, str):
            object.__setattr__(self, "image", Path(self.image))
        if not 0 <= self.ratio <= 1:
            raise DataError(f"Blend expects ratio in [0, 1], found {self.ratio}")
        pixels = load_image(self.image, "Blend")
        if pixels.shape[0] in {2, 4}:
            raise DataError("Blend expects a picture without transparency; save it as RGB, or use Patch")
        if not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise DataError("Blend expects the picture's pixels in [0, 1]; divide by 255")
        object.__setattr__(self, "_pixels", pixels)

    def _stamp(self, images: Tensor) -> Tensor:
        picture = resize(self._pixels, images.shape[2], images.shape[3])
        return (1 - self.ratio) * images + self.ratio * match_channels(picture, images, "Blend")
