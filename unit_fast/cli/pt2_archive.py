"""Read ``.pt2`` archives of ``torch.export.save`` so that no code in them can run.

``torch.export.load`` unpickles what the archive asks it to, loads native libraries it finds inside, evaluates symbolic
expressions as Python and writes names into source code that it compiles. So torch never sees an archive that was handed
over: what an exported program consists of is read out of it, checked, and written to a new archive, which torch loads.
"""

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from unit_fast.cli.model_error import ModelError
from unit_fast.cli.pt2_graph import RefusedError, clean_program, clean_tensors

_MODEL = "models/model.json"
_INPUTS = "data/sample_inputs/model.pt"
_TENSORS = {
    "data/weights/model_weights_config.json": re.compile(r"weight_\d+", re.ASCII),
    "data/constants/model_constants_config.json": re.compile(r"tensor_\d+", re.ASCII),
}
_FORMAT = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
_NEEDED = {_MODEL, _INPUTS, *_TENSORS, "archive_format", "archive_version"}
# Read by nobody here, and not handed on: files of the exporter's own, and what torch notes about the archive itself.
_LEFT_OUT = re.compile(r"extra/.*|\.data/\w+|\.format_version|\.storage_alignment|version", re.ASCII | re.DOTALL)
_EXPECTED = re.compile(
    "|".join([*map(re.escape, sorted(_NEEDED | {*_FORMAT})), r"data/weights/weight_\d+", r"data/constants/tensor_\d+"]),
    re.ASCII,
)
_WAY_OUT = "export the model again yourself, or name the network with --model package.module:factory and --weights"


def load_archive(path: Path) -> torch.export.ExportedProgram:
    """Load an archive of ``torch.export.save`` that holds graph and tensors only.

    Raises:
        ModelError: missing, damaged, made by another torch, or holding anything beside a graph of ATen operators and
            its tensors: pickled objects, native code, operators that touch files, expressions that are no sizes.
    """
    if not path.is_file():
        raise ModelError(f"--model {path}: there is no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            content = _content(archive)
        cleaned = _cleaned(content)
    except RefusedError as error:
        raise ModelError(f"--model {path} {error}; {_WAY_OUT}") from error
    # RuntimeError: encrypted. AttributeError and TypeError: JSON of another shape.
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, RuntimeError, AttributeError, TypeError) as error:
        raise ModelError(f"--model {path} is damaged, or no .pt2 archive: {_first_line(error)}") from error
    try:
        with _no_unpickling():
            return torch.export.load(_archive(cleaned))
    except Exception as error:  # torch raises whatever its reader stumbles over
        raise ModelError(
            f"--model {path} does not load with torch {torch.__version__}: {_first_line(error)}; export it again with "
            "this version, or name the network with --model package.module:factory"
        ) from error


@contextmanager
def _no_unpickling() -> Iterator[None]:
    # torch's own switch: it turns every torch.load beneath torch.export.load, fallbacks too, into weights_only=True.
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _content(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """The entries of an exported program by name, without the folder that all of them are in."""
    content: dict[str, bytes] = {}
    entries = archive.infolist()
    root = entries[0].filename.partition("/")[0] if entries else ""
    for entry in entries:
        folder, _, name = entry.filename.partition("/")
        if name and folder == root and _LEFT_OUT.fullmatch(name):
            continue
        # torch finds entries whatever their case; here another case is just another, unexpected name.
        if folder != root or not _EXPECTED.fullmatch(name):
            raise RefusedError(f"holds {entry.filename[:80]!r}, which is no part of a graph and its tensors")
        if name in content:
            raise RefusedError(f"holds {entry.filename!r} twice")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise RefusedError(f"holds {entry.filename!r} compressed, which torch.export.save does not do")
        content[name] = archive.read(entry)
    missing = sorted(_NEEDED - content.keys())
    if missing:
        raise RefusedError(f"lacks {missing[0]}, so this torch's torch.export.save did not make it")
    for name, value in _FORMAT.items():
        if content.get(name, value) != value:
            raise RefusedError(f"has {name} {content[name][:20]!r}; expected {value!r}")
    return content


def _cleaned(content: dict[str, bytes]) -> dict[str, bytes]:
    cleaned = dict(_FORMAT)
    cleaned[_MODEL] = _dumped(clean_program(json.loads(content[_MODEL])))
    for config_name, payload in _TENSORS.items():
        config = clean_tensors(json.loads(content[config_name]), payload)
        cleaned[config_name] = _dumped(config)
        folder = config_name.rpartition("/")[0]
        for entry in config["config"].values():
            name = f"{folder}/{entry['path_name']}"
            if name not in content:
                raise RefusedError(f"lacks {name}, which its list of tensors names")
            cleaned[name] = content[name]
    cleaned[_INPUTS] = _tensors_only(content[_INPUTS])
    return cleaned


def _tensors_only(pickled: bytes) -> bytes:
    """Sample inputs, unpickled as tensors in plain containers and pickled again."""
    try:
        inputs = torch.load(io.BytesIO(pickled), weights_only=True, map_location="cpu")
    except Exception as error:  # the unpickler raises whatever it stumbles over
        raise RefusedError(f"holds a pickled object, or nothing readable, in {_INPUTS}") from error
    buffer = io.BytesIO()
    torch.save(inputs, buffer)
    return buffer.getvalue()


def _dumped(content: Any) -> bytes:
    return json.dumps(content).encode()


def _archive(content: dict[str, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, value in content.items():
            archive.writestr(f"model/{name}", value)
        archive.writestr("model/.data/version", b"6\n")
    buffer.seek(0)
    return buffer


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
