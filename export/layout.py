"""A model repository of Triton Inference Server: ONNX file ⇒ NAME/config.pbtxt and NAME/VERSION/model.onnx."""

import shutil
import tempfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from unit_fast.export.errors import ExportError
from unit_fast.export.layout_config import MODEL, Signature, TritonOptions, read_signature, triton_config
from unit_fast.files import OutputError

CONFIG = "config.pbtxt"


def triton_repository(
    model: str | PathLike[str],
    folder: str | PathLike[str],
    options: TritonOptions | None = None,
    *,
    new_version: bool = False,
) -> Path:
    """Put an exported ONNX file into a model repository of Triton Inference Server.

    Args:
        model: the file; its external data, if any, lies beside it. It stays where it is.
        folder: of the model in the repository, ``REPOSITORY/NAME``; the server knows the model by NAME. It appears
            whole or not at all.
        options: for config.pbtxt.
        new_version: add the file as the next version to a folder that is there; the server then serves it in place of
            the last one. The config.pbtxt stays as it is, so ``options`` must be left out, and the versions must have
            the same inputs and outputs.

    Returns:
        Where the ONNX file is now: ``folder/VERSION/model.onnx``.

    Raises:
        ExportError: an option is wrong; a tensor has a type or shape the server does not take; versions differ.
        DataError: ``model`` is missing or no ONNX file.
        OutputError: the folder is there already (for a new version: is not), or cannot be written.
    """
    model, folder = Path(model), Path(folder)
    check_folder(folder, new_version)
    signature = read_signature(model)
    if new_version:
        if options is not None:
            raise ExportError(f"options are for a new {CONFIG}; a new version keeps the one that {folder} has: edit it")
        latest = _latest_version(folder)
        _require_same(signature, read_signature(folder / str(latest) / MODEL), folder / str(latest))
        target = folder / str(latest + 1)
        _appear(target, lambda made: _copy(model, signature, made))
        return target / MODEL
    options = options or TritonOptions()
    options.check()
    config = triton_config(folder.name, signature, options)

    def fill(made: Path) -> None:
        (made / CONFIG).write_text(config, encoding="utf-8")
        (made / "1").mkdir()
        _copy(model, signature, made / "1")

    _appear(folder, fill)
    return folder / "1" / MODEL


def check_folder(folder: Path, new_version: bool) -> None:
    """Raise OutputError unless a model, or a new version of one, can be put at ``folder``."""
    if not folder.name:
        raise OutputError(f"{folder} has no name; expected REPOSITORY/NAME, the folder of the model in the repository")
    if new_version:
        if not (folder / CONFIG).is_file() or not _versions(folder):
            raise OutputError(
                f"{folder} holds no {CONFIG} with a version to add another to; leave --new-version out to make it"
            )
    elif folder.exists() or folder.is_symlink():
        raise OutputError(f"{folder} is there already; choose another name, or add to it with --new-version")


def _versions(folder: Path) -> list[int]:
    # The server ignores folders that are not called by a number, or with zeros in front.
    numbers = (int(entry.name) for entry in folder.glob("[1-9]*") if entry.name.isdecimal())
    return sorted(number for number in numbers if (folder / str(number) / MODEL).is_file())


def _latest_version(folder: Path) -> int:
    return _versions(folder)[-1]


def _require_same(new: Signature, served: Signature, version: Path) -> None:
    for kind, ours, theirs in (
        ("inputs", new.inputs, served.inputs),
        ("outputs", new.outputs, served.outputs),
    ):
        if ours != theirs:
            raise ExportError(
                f"the versions of a model share one {CONFIG}, but this one has the {kind} {', '.join(map(str, ours))} "
                f"where {version} has {', '.join(map(str, theirs))}; give it a folder of its own"
            )


def _copy(model: Path, signature: Signature, folder: Path) -> None:
    shutil.copyfile(model, folder / MODEL)
    for name in signature.data_files:
        shutil.copyfile(model.parent / name, folder / name)


def _appear(target: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder ``target`` by filling one beside it and renaming that.

    Should the server look meanwhile, it finds a folder without a version in it, or within a model's folder one that is
    no version, and serves neither.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as stage:
            made = Path(stage) / target.name
            made.mkdir()
            fill(made)
            made.rename(target)
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}; nothing was changed. Is there a folder {target.parent} "
            "with room for the file?"
        ) from error
