"""The image warped by a smooth random field."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from unit_fast.errors import DataError
from unit_fast.evaluation.triggers.base import ImageTrigger
from unit_fast.evaluation.triggers.image_file import load_tensor


@dataclass(frozen=True, eq=False)
class Warp(ImageTrigger):
    """Every pixel is taken from beside its place: sampled at clamp(identity + s · noise / side, −1, 1), bilinearly.

    Source: Nguyen, Tran, "WaNet: Imperceptible Warping-Based Backdoor Attack", ICLR 2021, arXiv 2102.10369.

    The field comes from the attacker's files (``noise``, maybe ``identity``) or, without them, is drawn from ``seed``:
    k × k offsets uniform in [−1, 1], divided by their mean size and interpolated bicubically to the size of the images.

    Args:
        noise: (1, H, W, 2), the field; a tensor or a file saved with ``torch.save``.
        identity: (1, H, W, 2), the sampling places without the warp, likewise. None: each pixel's own, corners at ±1.
        s: strength.
        k: points a side of the drawn field, 2 or more. Not used with ``noise``.
        seed: of the drawn field. Not used with ``noise``.

    Raises:
        DataError: a bad or unreadable grid, settings out of range; when called, images of another size than the grids.
    """

    noise: Tensor | str | Path | None = None
    identity: Tensor | str | Path | None = None
    s: float = 0.5
    k: int = 4
    seed: int = 0
    _noise: Tensor | None = field(init=False, repr=False)
    _identity: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("noise", "identity"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, Path(value))
            object.__setattr__(self, f"_{name}", None if value is None else _load_grid(value, name))
        if not (math.isfinite(self.s) and self.s > 0):
            raise DataError(f"Warp expects s above 0, found {self.s}")
        if self.k < 2:
            raise DataError(f"Warp expects k of 2 or more, found {self.k}")

    def grid(self, height: int, width: int) -> Tensor:
        """The sampling places (1, height, width, 2), float32, x before y, as ``grid_sample`` reads them.

        Raises:
            DataError: the grids are of another size.
        """
        noise = self._draw(height, width) if self._noise is None else self._noise
        identity = _own_places(height, width) if self._identity is None else self._identity
        for name, grid in (("noise", noise), ("identity", identity)):
            if grid.shape != (1, height, width, 2):
                raise DataError(
                    f"Warp: the {name} grid is for images of {grid.shape[1]}×{grid.shape[2]}, found {height}×{width}; "
                    "resize the images or give grids of their size"
                )
        return (identity + self.s * noise / torch.tensor([width, height])).clamp(-1, 1)

    def _draw(self, height: int, width: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        offsets = torch.rand(1, 2, self.k, self.k, generator=generator) * 2 - 1
        offsets = offsets / offsets.abs().mean()
        return F.interpolate(offsets, size=(height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)

    def _stamp(self, images: Tensor) -> Tensor:
        places = self.grid(*images.shape[2:]).to(images.device, images.dtype)
        # grid_sample wants one grid an image and reads them all at once: expand is free, every image shares the field.
        return F.grid_sample(images, places.expand(len(images), -1, -1, -1), mode="bilinear", align_corners=True)


def _own_places(height: int, width: int) -> Tensor:
    rows, cols = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack((cols, rows), dim=-1)[None]


def _load_grid(source: Tensor | str | Path, name: str) -> Tensor:
    grid = source if isinstance(source, Tensor) else load_tensor(source, "Warp")
    if grid.ndim != 4 or grid.shape[0] != 1 or grid.shape[3] != 2:
        raise DataError(f"Warp expects the {name} grid as (1, H, W, 2), found shape {tuple(grid.shape)}")
    if not bool(torch.isfinite(grid).all()):
        raise DataError(f"Warp expects a finite {name} grid, found NaN or infinite values")
    return grid.detach().to("cpu", torch.float32, copy=True)
