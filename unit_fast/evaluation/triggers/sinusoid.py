"""A faint sinusoid along the columns."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unit_fast.errors import DataError
from unit_fast.evaluation.triggers.base import ImageTrigger


@dataclass(frozen=True, eq=False)
class Sinusoid(ImageTrigger):
    """clamp(x + delta · sin(2π · j · frequency / W), 0, 1), j the column: SIG.

    Source: Barni, Kallas, Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning",
    ICIP 2019, arXiv 1902.11237.

    Args:
        delta: amplitude in units of the pixel range; the paper attacks with 20 to 60 of 255.
        frequency: periods over the width of the image.
        first_column: the number of the leftmost column. The usual implementations count from 0, the paper from 1.

    Raises:
        DataError: an amplitude or frequency that is not positive and finite.
    """

    delta: float = 20 / 255
    frequency: float = 6.0
    first_column: int = 0

    def __post_init__(self) -> None:
        for name in ("delta", "frequency"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise DataError(f"Sinusoid expects {name} above 0, found {value}")
        if self.delta > 1:
            raise DataError(f"Sinusoid expects delta in the pixel range [0, 1], found {self.delta}; divide by 255")

    def _stamp(self, images: Tensor) -> Tensor:
        width = images.shape[3]
        column = torch.arange(self.first_column, self.first_column + width, dtype=torch.float64)
        wave = self.delta * torch.sin(2 * math.pi * column * self.frequency / width)
        return (images + wave.to(images.device, images.dtype)).clamp_(0, 1)
