"""A folder with one folder of images a class."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unit_fast.errors import BackendUnavailableError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
_GREY = {"1", "L", "LA"}
_EIGHT_BITS = _GREY | {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


class ImageFolder:
    """Images and their labels, decoded when they are read.

    Classes are the sub-folders: numbered 0, 1, … in the order of their names, or, where every name is a whole number
    (``0``, ``1``, …, ``42``, with leading zeros or without), by that number. A folder of images alone has no labels.
    Images are grey (1 channel) when all of them are, else RGB (3); transparency is dropped, palettes are looked up.

    Args:
        path: the folder.
        size: height and width to resize to; None takes the images as they are, which must then be of one size.

    Raises:
        DataError: no images; an empty class; images of several sizes, of more than 8 bits a channel, or unreadable.
        BackendUnavailableError: Pillow is not installed.
    """

    def __init__(self, path: Path, size: tuple[int, int] | None = None) -> None:
        self._size = size
        folders = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
        if folders:
            numbers = _class_numbers([folder.name for folder in folders])
            found = [
                (file, number) for folder, number in zip(folders, numbers, strict=True) for file in _images(folder)
            ]
            self.labels: Tensor | None = torch.tensor([number for _, number in found], dtype=torch.int64)
            self._files = [file for file, _ in found]
        else:
            self.labels = None
            self._files = _images(path)
        self._grey = self._look_through()

    def __len__(self) -> int:
        return len(self._files)

    def read(self, start: int, stop: int) -> Tensor:
        """Images start to stop: (stop - start, C, H, W) float32 in [0, 1]. Raises DataError for a damaged file."""
        pixels = np.stack([self._pixels(file) for file in self._files[start:stop]])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)

    def _pixels(self, file: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":  # (H, W, C)
        from PIL.Image import Resampling

        with _opened(file) as image:
            plain = image.convert("L" if self._grey else "RGB")
            if self._size is not None and plain.size != self._size[::-1]:
                plain = plain.resize(self._size[::-1], Resampling.BILINEAR)
            pixels = np.asarray(plain)
        return pixels[..., None] if self._grey else pixels

    def _look_through(self) -> bool:
        """Read every header, so that what doesn't fit is found now and not after hours; True when all are grey."""
        grey, first = True, None
        for file in self._files:
            with _opened(file) as image:
                if image.mode not in _EIGHT_BITS:
                    raise DataError(f"{file}: mode {image.mode} has more than 8 bits a channel; convert it to 8 bits")
                grey = grey and image.mode in _GREY
                first = first or (image.size, file)
                if self._size is None and image.size != first[0]:
                    raise DataError(
                        f"{file} is {_written(image.size)}, {first[1].name} is {_written(first[0])} (height x width); "
                        "all images must be of one size: give --size to resize them"
                    )
        return grey


def _images(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())
    files = [file for file in files if not file.name.startswith(".")]
    if not files:
        raise DataError(f"--data: no images in {folder} ({', '.join(sorted(_SUFFIXES))})")
    return files


def _class_numbers(names: list[str]) -> list[int]:
    # "10" sorts before "2": by order alone numbered classes without leading zeros would get each other's labels.
    if not all(name.isdecimal() and name.isascii() for name in names):
        return list(range(len(names)))
    numbers = [int(name) for name in names]
    if len(set(numbers)) < len(numbers):
        raise DataError(f"--data: two class folders have one number among {', '.join(names)}; rename one")
    return numbers


@contextmanager
def _opened(file: Path) -> "Iterator[Image]":
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise BackendUnavailableError(
            "reading images needs Pillow, which is not installed; pip install 'unit_fast[vision]'"
        ) from error
    try:
        with Image.open(file) as image:
            yield image
    except UnidentifiedImageError as error:
        raise DataError(f"{file} is no image that Pillow can read; remove or replace it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} is damaged: {error}; remove or replace it") from error


def _written(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
