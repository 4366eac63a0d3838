"""Triggers from one line of text: ``name:key=value,key=value``."""

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from unit_fast.errors import DataError
from unit_fast.evaluation.triggers.add import Add
from unit_fast.evaluation.triggers.blend import Blend
from unit_fast.evaluation.triggers.custom import Custom
from unit_fast.evaluation.triggers.patch import Patch
from unit_fast.evaluation.triggers.sinusoid import Sinusoid
from unit_fast.evaluation.triggers.warp import Warp

_Readers = Mapping[str, Callable[[str], object]]


def parse(spec: str) -> Callable[[Tensor], Tensor]:
    """Make a trigger from a line of text.

    ::

        patch:size=4,row=27,col=27,value=1       patch:size=4x6,value=1/0/0       patch:flower.png,size=8
        blend:kitty.png,ratio=0.2                add:watermark.png                sinusoid:delta=0.08,frequency=6
        warp:seed=0,k=4,s=0.5                    warp:noise=noise.pt,identity=identity.pt
        warp:folder                              (holds noise_grid.pt and, maybe, identity_grid.pt)
        custom:package.module:function

    A path comes first, or under its key; it may hold commas and colons.

    Raises:
        DataError: an unknown trigger or option, a value that can't be read, or one the trigger refuses.
    """
    name, _, rest = spec.partition(":")
    name = name.strip().lower()
    if name == "custom":
        return _parse_custom(spec, rest)
    if name not in _TRIGGERS:
        raise DataError(f"trigger {spec!r}: expected one of {', '.join([*_TRIGGERS, 'custom'])}, found {name!r}")
    build, path_key, readers = _TRIGGERS[name]
    options: dict[str, object] = {}
    for key, text in _split(rest, path_key, spec).items():
        if key not in readers:
            raise DataError(f"trigger {spec!r}: {name} takes {', '.join(readers)}, found {key!r}")
        try:
            options[key] = readers[key](text)
        except ValueError as error:
            raise DataError(f"trigger {spec!r}: {key} expects {_expectation(readers[key])}, found {text!r}") from error
    if path_key == "image" and name != "patch" and "image" not in options:
        raise DataError(f"trigger {spec!r}: {name} needs an image, as in {name}:picture.png")
    try:
        return build(**options)
    except DataError as error:
        raise DataError(f"trigger {spec!r}: {error}") from error


def _split(rest: str, path_key: str | None, spec: str) -> dict[str, str]:
    # Only a comma before "key=" separates, so that paths may hold commas.
    parts = [part for part in re.split(r",(?=\s*\w+=)", rest) if part.strip()]
    found: dict[str, str] = {}
    for place, part in enumerate(parts):
        match = re.match(r"\s*(\w+)=(.*)", part, re.DOTALL)
        if match:
            key, value = match[1], match[2].strip()
        elif place == 0 and path_key is not None:
            key, value = path_key, part.strip()
        else:
            raise DataError(f"trigger {spec!r}: expected key=value, found {part!r}")
        if key in found:
            raise DataError(f"trigger {spec!r}: {key} is given twice; keep one")
        found[key] = value
    return found


def _parse_custom(spec: str, rest: str) -> Custom:
    module_name, _, attribute = rest.partition(":")
    if not module_name or not attribute:
        raise DataError(f"trigger {spec!r}: expected custom:package.module:function")
    try:
        fn = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise DataError(f"trigger {spec!r}: {error}; is its folder on PYTHONPATH?") from error
    if not callable(fn):
        raise DataError(f"trigger {spec!r}: expected a function, found {type(fn).__name__}")
    return Custom(fn)


def _read_size(text: str) -> int | tuple[int, int]:
    height, cross, width = text.partition("x")
    return (int(height), int(width)) if cross else int(height)


def _read_value(text: str) -> float | tuple[float, ...]:
    values = tuple(float(part) for part in text.split("/"))
    return values[0] if len(values) == 1 else values


def _expectation(reader: Callable[[str], object]) -> str:
    names: dict[Callable[[str], object], str] = {
        int: "a whole number",
        float: "a number",
        _read_size: "pixels (4) or height x width (4x6)",
        _read_value: "a number, or one a channel (1/0/0)",
    }
    return names.get(reader, "a path")


def _warp(folder: Path | None = None, **options: object) -> Warp:
    if folder is not None:
        if not folder.is_dir():
            raise DataError(f"Warp: there is no folder {folder}; name one with noise_grid.pt in it, or noise=FILE")
        options.setdefault("noise", folder / "noise_grid.pt")
        if (folder / "identity_grid.pt").exists():
            options.setdefault("identity", folder / "identity_grid.pt")
    return Warp(**options)  # type: ignore[arg-type]  # read by the functions below


_TRIGGERS: dict[str, tuple[Callable[..., Callable[[Tensor], Tensor]], str | None, _Readers]] = {
    "patch": (Patch, "image", {"size": _read_size, "row": int, "col": int, "value": _read_value, "image": Path}),
    "blend": (Blend, "image", {"image": Path, "ratio": float}),
    "add": (Add, "image", {"image": Path}),
    "sinusoid": (Sinusoid, None, {"delta": float, "frequency": float, "first_column": int}),
    "warp": (
        _warp,
        "folder",
        {"folder": Path, "noise": Path, "identity": Path, "s": float, "k": int, "seed": int},
    ),
}
