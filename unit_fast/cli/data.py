"""What ``--data`` names, as batches of pixels in [0, 1] and labels, read a batch at a time."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from unit_fast.cli.image_folder import ImageFolder
from unit_fast.cli.npz_file import NpzFile
from unit_fast.errors import DataError


class Samples(Protocol):
    """Samples by number; opening them has checked what can be checked without reading them all."""

    @property
    def labels(self) -> Tensor | None:
        """(N,) int64; None where there are none."""

    def __len__(self) -> int:
        """How many."""

    def read(self, start: int, stop: int) -> Tensor:
        """Samples start to stop, (stop - start, C, H, W) float32 in [0, 1], or (stop - start, F) float32."""


@dataclass(frozen=True)
class Normalisation:
    """(x - mean) / std, as the model was trained with; one number or one a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:  # (N, C, …)
        """``x`` normalised. Raises DataError where the numbers are neither one nor one a channel."""
        return (x - self._along_channels(self.mean, "--mean", x)) / self._along_channels(self.std, "--std", x)

    @staticmethod
    def _along_channels(values: tuple[float, ...], option: str, x: Tensor) -> Tensor:
        if len(values) not in (1, x.shape[1]):
            raise DataError(f"{option} has {len(values)} numbers for images of {x.shape[1]} channel(s); give 1 or that")
        return torch.tensor(values, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 2))


class Batches:
    """A loader over samples: ``(x, y)``, or ``(x, None)`` without labels, always in the same order.

    Args:
        samples: what to read.
        batch_size: samples at a time.
        transform: applied to every batch of inputs.
    """

    def __init__(self, samples: Samples, batch_size: int, transform: Normalisation | None = None) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.transform = transform

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        labels = self.samples.labels
        for start in range(0, len(self.samples), self.batch_size):
            stop = min(start + self.batch_size, len(self.samples))
            yield self._transformed(start, stop), None if labels is None else labels[start:stop]

    def example(self) -> Tensor:
        """Two samples (one where there is but one), transformed: what the model is called with."""
        return self._transformed(0, min(2, len(self.samples)))

    def _transformed(self, start: int, stop: int) -> Tensor:
        x = self.samples.read(start, stop)
        return x if self.transform is None else self.transform(x)


def open_samples(path: Path, size: str | None = None) -> Samples:
    """Open a folder of images or an ``.npz`` file.

    Args:
        path: a folder with a folder a class (or images alone: no labels), or ``.npz`` with ``x`` and maybe ``y``.
        size: ``"224"`` or ``"480x640"``, height x width, for images only.

    Raises:
        DataError: missing, of another kind, empty, damaged, or of several sizes.
    """
    if path.is_dir():
        return ImageFolder(path, parse_size(size))
    if not path.exists():
        raise DataError(f"--data {path}: there is no such file or folder")
    if path.suffix != ".npz":
        raise DataError(f"--data {path}: expected a folder of images or an .npz file")
    if size is not None:
        raise DataError("--size resizes images of a folder; the arrays of an .npz file are taken as they are")
    return NpzFile(path)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``"224"`` or ``"480x640"`` as (height, width)."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if match is None:
        raise DataError(f"--size {text}: expected pixels, such as 224, or height x width, such as 480x640")
    return int(match[1]), int(match[2] or match[1])


def parse_normalisation(mean: str | None, std: str | None) -> Normalisation | None:
    """``--mean`` and ``--std`` as numbers; None where neither is given."""
    if mean is None and std is None:
        return None
    normalisation = Normalisation(_numbers(mean or "0", "--mean"), _numbers(std or "1", "--std"))
    if not all(value > 0 for value in normalisation.std):
        raise DataError(f"--std {std}: expected numbers above 0")
    return normalisation


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        values = torch.tensor([float(part) for part in text.split(",")])
    except ValueError as error:
        raise DataError(f"{option} {text}: expected numbers with commas between, such as 0.485,0.456,0.406") from error
    if not bool(values.isfinite().all()):
        raise DataError(f"{option} {text}: expected finite numbers")
    return tuple(float(part) for part in text.split(","))
