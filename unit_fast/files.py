"""Write files whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from unit_fast.errors import UnitFastError


class OutputError(UnitFastError):
    """A file cannot be written where it was asked for."""


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then rename it to ``path``.

    Readers see the old file or the whole new one; whatever interrupts ``write`` (an error, a full disk, Ctrl-C)
    leaves the old file as it was and nothing else behind.

    Args:
        path: where the file shall be. Its folder must exist.
        write: is given the temporary path, which exists and is empty, and writes the content.

    Returns:
        ``path``.

    Raises:
        OutputError: the folder is missing or read-only, ``path`` is a folder, a device or a pipe, or the disk is full.
    """
    target = Path(os.path.realpath(path))  # a link stays a link to the new file
    if target.is_dir():
        raise OutputError(f"cannot write {target}: it is a folder; name a file in it")
    if target.exists() and not target.is_file():
        raise OutputError(f"cannot write {target}: it is a device or a pipe, which a file would replace; name a file")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}; "
            f"create the folder {target.parent} or choose another place"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}; nothing was changed") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    return Path(path)


def _umask() -> int:
    # mkstemp makes private files; what users asked for gets the mode any other file of theirs would.
    mask = os.umask(0)
    os.umask(mask)
    return mask
