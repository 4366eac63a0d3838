"""A pattern added to the pixels."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from unit_fast.errors import DataError
from unit_fast.evaluation.triggers.base import ImageTrigger
from unit_fast.evaluation.triggers.image_file import ImageSource, load_image, match_channels


@dataclass(frozen=True, eq=False)
class Add(ImageTrigger):
    """clamp(x + pattern, 0, 1): watermarks and additive noise.

    Source: Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang, "Trojaning Attack on Neural Networks", NDSS 2018 (the watermark);
    universal additive perturbations are applied in the same way.

    Args:
        image: the pattern, of exactly the images' size: an image file, or a tensor (C, H, W), saved or not, which may
            be negative where it darkens.

    Raises:
        DataError: an unreadable or transparent pattern; when called, one whose size or channels don't fit.
    """

    image: ImageSource
    _pattern: Tensor = field(init=False, repr=False)  # (C, H, W)

    def __post_init__(self) -> None:
        if isinstance(self.image, str):
            object.__setattr__(self, "image", Path(self.image))
        pattern = load_image(self.image, "Add")
        if pattern.shape[0] in {2, 4}:
            raise DataError("Add expects a pattern without transparency; save it as RGB")
        object.__setattr__(self, "_pattern", pattern)

    def _stamp(self, images: Tensor) -> Tensor:
        if self._pattern.shape[1:] != images.shape[2:]:
            raise DataError(
                f"Add: the pattern is {tuple(self._pattern.shape[1:])} pixels, the images are {tuple(images.shape[2:])}"
                "; a pattern is never resized, give one of the images' size"
            )
        return (images + match_channels(self._pattern, images, "Add")).clamp_(0, 1)
