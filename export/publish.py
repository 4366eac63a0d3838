"""A verified file goes to its place at one instant, with its external data, if it has any.

Two files cannot be replaced at once. So external data gets a name of its own, made of its content: until the model file
is renamed, the old model with its old data is what is there, and from then on the new one.
"""

import contextlib
import hashlib
import shutil
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from unit_fast.files import atomic_write


def data_name(model: ir.Model, path: Path) -> str:
    """Name of the external data of ``model`` at ``path``; the same for the same tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(model.graph.initializers.items()):
        if value.const_value is not None:
            digest.update(name.encode())
            digest.update(value.const_value.tobytes())
    return f"{path.name}.{digest.hexdigest()[:12]}.data"


def publish(file: Path, path: Path, data: Path | None) -> int:
    """Move the verified file to its place, its external data first; returns their size in bytes.

    Data that a model which was there before read, and this one does not, is removed.

    Raises:
        OutputError: ``path`` cannot be written; what was there before still is.
    """
    size = file.stat().st_size
    before = _data_of(path)
    placed = None if data is None else path.with_name(data.name)
    is_new = placed is not None and not placed.exists()
    if data is not None and placed is not None:
        size += data.stat().st_size
        data.replace(placed)
    try:
        atomic_write(path, lambda temporary: shutil.copyfile(file, temporary))
    except BaseException:
        if is_new and placed is not None:
            placed.unlink()
        raise
    for old in before - {placed}:
        with contextlib.suppress(OSError):
            old.unlink()
    return size


def _data_of(path: Path) -> set[Path]:
    """External data beside ``path`` that the model there reads and that an export gave its name."""
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError):
        return set()
    names = {ExternalDataInfo(tensor).location for tensor in model.graph.initializer if uses_external_data(tensor)}
    ours = {name for name in names if name == Path(name).name and name.startswith(path.name) and name.endswith(".data")}
    return {path.with_name(name) for name in ours}
