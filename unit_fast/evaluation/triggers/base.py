"""What all image triggers share: the checks on a batch, equality and a one-line description."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from unit_fast.errors import DataError

# Resizing and decoding overshoot [0, 1] by rounding; normalised images leave it by far more.
_RANGE_SLACK = 1e-3


class ImageTrigger(ABC):
    """Base of the triggers that act on pixels in [0, 1].

    Two triggers are equal when they are of one class and their fields are, tensors compared by value.
    """

    def __call__(self, images: Tensor) -> Tensor:
        """Stamp the trigger on ``images`` and return them as new ones.

        Args:
            images: (N, C, H, W), floating point, values in [0, 1].

        Returns:
            (N, C, H, W), the same dtype and device.

        Raises:
            DataError: these are not images, or not in [0, 1], or too small for the trigger.
        """
        check_images(images, type(self).__name__)
        return self._stamp(images)

    @abstractmethod
    def _stamp(self, images: Tensor) -> Tensor:
        """Return new images; ``images`` are checked, and must not be written to."""

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(_same(mine, theirs) for mine, theirs in zip(_values(self), _values(other), strict=True))

    def __hash__(self) -> int:
        return hash((type(self), tuple(v for v in _values(self) if not isinstance(v, Tensor))))

    def __str__(self) -> str:
        """The trigger as :func:`~unit_fast.evaluation.triggers.parse` reads it, files by their name only."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
        shown = [(field.name, getattr(self, field.name)) for field in fields if field.init]
        options = ",".join(f"{name}={_text(name, value)}" for name, value in shown if value is not None)
        return f"{type(self).__name__.lower()}:{options}"


def check_images(images: Tensor, trigger: str) -> None:
    """Raise :class:`DataError` unless ``images`` are (N, C, H, W), floating point, in [0, 1]."""
    if not isinstance(images, Tensor):
        raise DataError(f"{trigger} expects a tensor of images (N, C, H, W), found {type(images).__name__}")
    if images.ndim != 4:
        raise DataError(
            f"{trigger} expects images (N, C, H, W), found shape {tuple(images.shape)}; "
            "for data that is not images write the trigger as a function and use Custom(fn)"
        )
    if not images.is_floating_point():
        raise DataError(f"{trigger} expects floating point pixels in [0, 1], found {images.dtype}; divide by 255 first")
    if images.numel() == 0:
        return
    low, high = (float(value) for value in torch.aminmax(images.detach()))
    if not (low >= -_RANGE_SLACK and high <= 1 + _RANGE_SLACK):
        raise DataError(
            f"{trigger} expects pixels in [0, 1], found values from {low:.4g} to {high:.4g}; load the images without "
            "normalisation and give the normalisation to evaluate as preprocess=, which comes after the trigger"
        )


def stamped(trigger: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """What ``trigger`` makes of a batch, which stays as it is even where the trigger writes to it.

    Raises:
        DataError: it returns something else than a batch of the same shape and dtype.
    """
    images = trigger(inputs.clone())
    if not isinstance(images, Tensor) or images.shape != inputs.shape or images.dtype != inputs.dtype:
        found = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise DataError(
            f"trigger {describe(trigger)}: expected a batch {tuple(inputs.shape)} {inputs.dtype} back, found {found}"
        )
    return images


def describe(trigger: Callable[[Tensor], Tensor]) -> str:
    """One line for reports: the trigger's settings, or the name of a plain function."""
    if isinstance(trigger, ImageTrigger):
        return str(trigger)
    name = getattr(trigger, "__qualname__", None)
    return str(name) if name is not None else str(trigger)


def _values(trigger: ImageTrigger) -> list[object]:
    return [getattr(trigger, field.name) for field in dataclasses.fields(trigger)]  # type: ignore[arg-type]


def _same(mine: object, theirs: object) -> bool:
    if isinstance(mine, Tensor) and isinstance(theirs, Tensor):
        return mine.shape == theirs.shape and bool(torch.equal(mine, theirs))
    return type(mine) is type(theirs) and mine == theirs


def _text(name: str, value: object) -> str:
    if isinstance(value, Tensor):
        return f"<tensor {'x'.join(map(str, value.shape))}>"
    if isinstance(value, Path):
        return value.name
    if isinstance(value, tuple):
        return ("x" if name == "size" else "/").join(_text(name, part) for part in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
