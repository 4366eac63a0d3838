"""An ``.npz`` file with ``x`` and, maybe, ``y``."""

import zipfile
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from unit_fast.errors import DataError

_Array: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[Any]]"


class NpzFile:
    """Samples of an ``.npz`` file; a batch at a time becomes float32.

    ``x`` is images, (N, C, H, W), (N, H, W, C) or grey (N, H, W), of uint8 or of floats in [0, 1]; or features (N, F),
    any finite floats. ``y`` is class numbers (N,), or absent.

    Raises:
        DataError: damaged; ``x`` missing, empty, of another shape, type or range, or with NaN; ``y`` no class numbers.
    """

    def __init__(self, path: Path) -> None:
        arrays = _load(path)
        self._channels_last = False
        self._x = self._checked_inputs(arrays["x"], path)
        self.labels = _checked_labels(arrays["y"], len(self._x), path) if "y" in arrays else None

    def __len__(self) -> int:
        return len(self._x)

    def read(self, start: int, stop: int) -> Tensor:
        """Samples start to stop: (stop - start, C, H, W) in [0, 1] or (stop - start, F), float32."""
        batch = self._x[start:stop]
        x = torch.from_numpy(np.ascontiguousarray(batch))
        x = x.float().div_(255) if x.dtype == torch.uint8 else x.float()
        if self._channels_last:
            x = x.permute(0, 3, 1, 2).contiguous()
        return x

    def _checked_inputs(self, x: _Array, path: Path) -> _Array:
        if x.ndim not in (2, 3, 4) or 0 in x.shape:
            raise DataError(f"{path}: x has shape {x.shape}; expected images (N, C, H, W), (N, H, W, C) or (N, H, W)")
        if x.dtype != np.uint8 and x.dtype.kind != "f":
            raise DataError(f"{path}: x is {x.dtype}; expected uint8, or floats in [0, 1]")
        if x.dtype.kind == "f":
            _check_range(x, path)
        if x.ndim == 3:
            x = x[:, None]
        elif x.ndim == 4:
            self._channels_last = _is_channels_last(x.shape, path)
        return x


def _load(path: Path) -> dict[str, _Array]:
    try:
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path} is damaged, or no .npz file; np.savez(file, x=images, y=labels) makes one")
        with np.load(path, allow_pickle=False) as archive:
            if "x" not in archive.files:
                raise DataError(f"{path}: expected arrays x and y, found {', '.join(archive.files) or 'none'}")
            return {name: archive[name] for name in archive.files if name in ("x", "y")}
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path} holds Python objects, which are not unpickled; save plain number arrays"
            ) from error
        raise DataError(f"{path} is damaged, or no .npz file: {error}") from error
    except (OSError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise DataError(f"{path} is damaged, or no .npz file: {error}") from error


def _check_range(x: _Array, path: Path) -> None:
    for start in range(0, len(x), 256):
        part = x[start : start + 256]
        bad = ~np.isfinite(part).reshape(len(part), -1).all(1)
        if bad.any():
            raise DataError(
                f"{path}: x[{start + int(bad.argmax())}] holds NaN or infinity; remove or repair the sample"
            )
        if x.ndim > 2 and not (part.min() >= 0 and part.max() <= 1):
            raise DataError(
                f"{path}: x has values from {part.min():.4g} to {part.max():.4g}; expected floats in [0, 1]; "
                "what the model wants subtracted and divided goes into --mean and --std"
            )


def _is_channels_last(shape: tuple[int, ...], path: Path) -> bool:
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first == last:
        raise DataError(
            f"{path}: x has shape {shape}; expected images (N, C, H, W) or (N, H, W, C) with 1 or 3 channels"
            + (", and cannot tell which this is" if first else "")
        )
    return last


def _checked_labels(y: _Array, samples: int, path: Path) -> Tensor:
    if y.shape != (samples,) or y.dtype.kind not in "iu":
        raise DataError(
            f"{path}: y is {y.dtype} of shape {y.shape}; expected whole class numbers, one for each of {samples}"
        )
    labels = torch.from_numpy(y.astype(np.int64))
    if int(labels.min()) < 0:
        raise DataError(f"{path}: y holds {int(labels.min())}; expected class numbers from 0 on")
    return labels
