"""What a model wants done to pixels before it sees them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from unit_fast.export.errors import ExportError

# Each one number, or one a channel.
MeanAndStd: TypeAlias = tuple[float | Sequence[float], float | Sequence[float]]


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
    def of(cls, given: "Normalization | MeanAndStd | None") -> "Normalization | None":
        """From ``(mean, std)``, each one number or one a channel.

        Raises:
            ExportError: ``given`` is something else.
        """
        if given is None or isinstance(given, Normalization):
            return given
        try:
            mean, std = given
            return cls(_numbers(mean), _numbers(std))
        except (TypeError, ValueError) as error:
            raise ExportError(
                f"normalization={given!r}: expected (mean, std), each one number or one a channel"
            ) from error


def _numbers(given: float | Sequence[float]) -> tuple[float, ...]:
    return (float(given),) if isinstance(given, int | float) else tuple(float(value) for value in given)
