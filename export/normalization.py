"""What a model wants done to pixels before it sees them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from unit_fast.export.errors import ExportError


@dataclass(frozen=True)
class Normalization:
    """What the model wants done to pixels in [0, 1].

    Attributes:
        mean: is subtracted, one number or one a channel.
        std: is then divided by, above 0.

    Raises:
        ExportError: a number is not finite, a std is not above 0, or the lengths differ.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (*self.mean, *self.std))) or not all(value > 0 for value in self.std):
            raise ExportError(f"normalization={self.mean}, {self.std}: expected finite means and stds above 0")
        if not self.mean or not self.std or len({len(self.mean), len(self.std)} - {1}) > 1:
            raise ExportError(f"normalization={self.mean}, {self.std}: expected one number each, or one a channel")

    @classmethod
    def of(cls, given: "Normalization | tuple[Sequence[float], Sequence[float]] | None") -> "Normalization | None":
        """From ``(mean, std)``."""
        if given is None or isinstance(given, Normalization):
            return given
        mean, std = given
        return cls(tuple(float(value) for value in mean), tuple(float(value) for value in std))
