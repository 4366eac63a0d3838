"""Trigger images and grids: from a file or a tensor, and in the size they are needed."""

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from unit_fast.errors import BackendUnavailableError, DataError

ImageSource = Tensor | str | Path


def load_image(source: ImageSource, trigger: str) -> Tensor:
    """Read a trigger image.

    Args:
        source: a tensor (C, h, w) or (h, w) in [0, 1]; or a file: any image Pillow reads, or a tensor saved with
            ``torch.save`` (``.pt``, ``.pth``).
        trigger: the trigger's name, for messages.

    Returns:
        (C, h, w), float32, in [0, 1], on the CPU. C is 1, 3 or, with transparency, 2 or 4.

    Raises:
        DataError: the file is missing or no image, or the tensor has another shape or range.
        BackendUnavailableError: Pillow is not installed.
    """
    where = "the tensor given" if isinstance(source, Tensor) else str(source)
    if isinstance(source, Tensor):
        image = source
    elif Path(source).suffix in {".pt", ".pth"}:
        image = load_tensor(source, trigger)
    else:
        image = _read_picture(Path(source), trigger)
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3 or image.numel() == 0:
        raise DataError(f"{trigger} expects an image (C, h, w), found shape {tuple(image.shape)} in {where}")
    if not image.is_floating_point():
        raise DataError(f"{trigger} expects pixels as floats in [0, 1], found {image.dtype} in {where}; divide by 255")
    image = image.detach().to("cpu", torch.float32, copy=True)
    if not bool(torch.isfinite(image).all()):
        raise DataError(f"{trigger} expects finite pixels, found NaN or infinite values in {where}")
    return image


def load_tensor(path: str | Path, trigger: str) -> Tensor:
    """Read one tensor saved with ``torch.save``; nothing but tensors is ever unpickled.

    Raises:
        DataError: the file is missing, damaged, or holds anything but a tensor.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"{trigger}: there is no file {path}") from error
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{trigger} cannot read a tensor from {path}: {reason}") from error
    if not isinstance(content, Tensor):
        raise DataError(f"{trigger} expects {path} to hold one tensor, found {type(content).__name__}")
    return content


def resize(image: Tensor, height: int, width: int) -> Tensor:  # (C, h, w) -> (C, height, width)
    """Resize bilinearly, averaging when it shrinks; an image of that size already comes back as it is."""
    if image.shape[-2:] == (height, width):
        return image
    return F.interpolate(image[None], size=(height, width), mode="bilinear", antialias=True, align_corners=False)[0]


def match_channels(image: Tensor, images: Tensor, trigger: str) -> Tensor:
    """Move a trigger image (1 or C, H, W) to the batch's dtype and device; raise when its channels don't fit."""
    channels = images.shape[1]
    if image.shape[0] not in {1, channels}:
        raise DataError(
            f"{trigger}: the batch has {channels} channel(s), the trigger image {image.shape[0]}; "
            "give an image with as many channels, or one"
        )
    return image.to(images.device, images.dtype)


def _read_picture(path: Path, trigger: str) -> Tensor:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise BackendUnavailableError(
            f"{trigger} needs Pillow to read {path}; install it with: pip install 'unit_fast[vision]'"
        ) from error
    try:
        with Image.open(path) as picture:
            mode = _plain_mode(picture.mode, "transparency" in picture.info)
            plain = picture.convert(mode)
    except FileNotFoundError as error:
        raise DataError(f"{trigger}: there is no file {path}") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(f"{trigger} expects an image file, found something else in {path}: {error}") from error
    flat = torch.frombuffer(bytearray(plain.tobytes()), dtype=torch.uint8)
    channels = len(plain.getbands())
    return flat.view(plain.height, plain.width, channels).permute(2, 0, 1).float() / 255


def _plain_mode(mode: str, has_transparency: bool) -> str:
    if mode in {"L", "LA", "RGB", "RGBA"} and not has_transparency:
        return mode
    if mode in {"1", "I", "F", "I;16"}:
        return "L"
    return "RGBA" if has_transparency or mode in {"PA", "RGBa"} else "RGB"
