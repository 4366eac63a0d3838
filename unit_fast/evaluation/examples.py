"""A few samples to look at, drawn evenly from a stream of unknown length."""

import base64
import random
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unit_fast.evaluation.png import encode_png


@dataclass(frozen=True)
class Example:
    """One sample, clean and triggered, with what the model made of it."""

    index: int
    """Place in the stream of samples."""
    label: int
    target: int
    clean_prediction: int
    triggered_prediction: int
    clean_png: bytes
    triggered_png: bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the pictures in base64."""
        return {
            "index": self.index,
            "label": self.label,
            "target": self.target,
            "clean_prediction": self.clean_prediction,
            "triggered_prediction": self.triggered_prediction,
            "clean_png": base64.b64encode(self.clean_png).decode(),
            "triggered_png": base64.b64encode(self.triggered_png).decode(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Example":
        """The inverse of :meth:`to_dict`."""
        pictures = {key: base64.b64decode(values[key], validate=True) for key in ("clean_png", "triggered_png")}
        return cls(**{**values, **pictures})


class ExampleDraw:
    """Draws ``size`` samples, each of the stream with the same chance (reservoir sampling, Vitter's algorithm R).

    Which places are drawn depends on the seed and the stream's length alone, so two models evaluated on the same
    loader show the same samples.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self._size = size
        self._random = random.Random(seed)
        self._seen = 0
        self._drawn: list[tuple[Example, ...]] = []

    def place(self) -> int | None:
        """Count one more sample; where to put it, or None when it is not drawn."""
        self._seen += 1
        if self._seen <= self._size:
            self._drawn.append(())
            return self._seen - 1
        drawn = self._random.randrange(self._seen) if self._size else 0
        return drawn if drawn < self._size else None

    def put(self, place: int, examples: tuple[Example, ...]) -> None:
        """Keep a sample, as each of the models sees it."""
        self._drawn[place] = examples

    def of_model(self, number: int) -> tuple[Example, ...]:
        """The samples as one of the models sees them, in the order of the stream."""
        return tuple(sorted((drawn[number] for drawn in self._drawn if drawn), key=lambda example: example.index))


def picture(image: Tensor) -> bytes | None:
    """PNG of a sample (C, H, W); None where it is no picture of one or three channels."""
    if image.ndim != 3 or image.shape[0] not in {1, 3} or not image.is_floating_point():
        return None
    return encode_png(image)
