"""What ``unit-fast export --layout triton`` adds: its options, and putting the file into the repository."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unit_fast.cli.outputs import make_folder
from unit_fast.errors import DataError

if TYPE_CHECKING:
    from unit_fast.export import ExportReport, TritonOptions


def server_options(given: Mapping[str, Any], folder: Path, new_version: bool) -> "TritonOptions | None":
    """The options for config.pbtxt, checked, and the folder that the model goes to; None when none are given.

    Args:
        given: what the command line says, by name; None where it says nothing.
        folder: of the model; the repository is made where it is missing.
        new_version: whether the file becomes a new version of a model that is there.

    Raises:
        UnitFastError: an option is wrong, or the folder cannot be made, is there, or for a new version is not.
    """
    from unit_fast.export import TritonOptions
    from unit_fast.export.layout import check_folder

    said = {name: value for name, value in given.items() if value is not None}
    if new_version and said:
        raise DataError(
            f"{_option(next(iter(said)))} does not go with --new-version, which keeps the config.pbtxt: edit it"
        )
    if "preferred_batch_sizes" in said:
        said["preferred_batch_sizes"] = _sizes(said["preferred_batch_sizes"])
    options = TritonOptions(**said)
    options.check()
    check_folder(folder, new_version)
    make_folder(folder.parent)
    return None if new_version else options


def refuse_server_options(given: Mapping[str, Any]) -> None:
    """Raise DataError when there are options that only ``--layout triton`` has a use for."""
    for name, value in given.items():
        if value is not None and value is not False:
            raise DataError(
                f"{_option(name)} is for --layout triton, which writes a model repository; add it or leave this out"
            )


def place(report: "ExportReport", folder: Path, options: "TritonOptions | None", new_version: bool) -> "ExportReport":
    """Put the exported file into the repository; the report of it there."""
    from unit_fast.export import triton_repository

    placed = triton_repository(report.path, folder, options, new_version=new_version)
    data = report.external_data
    return replace(report, path=placed, external_data=placed.with_name(data.name) if data else None)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise DataError(
            f"--preferred-batch-sizes {text}: expected whole numbers with commas between, such as 8,32"
        ) from error
