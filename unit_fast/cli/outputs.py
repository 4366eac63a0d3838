"""Find out that a result cannot be written before the long work that makes it, not after."""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from unit_fast.files import OutputError


def check_writable(path: Path, option: str = "--output", inputs: Mapping[str, Path | str | None] | None = None) -> Path:
    """Return ``path`` if a file can be made there.

    Args:
        path: of the file to be made.
        option: that named it.
        inputs: what the command reads, by option: paths, and text that names files or modules, such as
            ``package.module:factory`` and ``blend:FILE,ratio=0.2``. Whatever is no file does not count.

    Raises:
        OutputError: its folder is missing or read-only, or ``path`` is a folder, a device or a pipe. Of a link, what it
            leads to counts. Or it is one of ``inputs``, which would be lost.
    """
    # As atomic_write does: a link stays, and the file it leads to is replaced. Unlike resolve(), this takes link loops.
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputError(f"{option} {path} is a folder; name a file in it, such as {path / 'result'}")
    if os.path.lexists(target) and not target.is_file():
        raise OutputError(f"{option} {path} is a device, a pipe or a loop of links and would be replaced; name a file")
    for other, source in (inputs or {}).items():
        if source is not None and any(_same_file(target, read) for read in _files_in(str(source))):
            raise OutputError(f"{option} {path} is what {other} names and would be replaced; name another file")
    _try_to_write(target.parent if path.is_symlink() else path.parent, option, path)
    return path


def check_distinct(outputs: Mapping[str, Path | None]) -> None:
    """Make sure that no two results go to the same file.

    Args:
        outputs: the files to be made, by option; None where there is none.

    Raises:
        OutputError: two are the same, by whatever path or link.
    """
    seen: dict[str, str] = {}
    for option, path in outputs.items():
        if path is not None:
            first = seen.setdefault(os.path.realpath(path), option)
            if first != option:
                raise OutputError(f"{option} {path} is the file that {first} goes to; name another")


def make_folder(path: Path, option: str = "--output") -> Path:
    """Create the folder ``path`` where it is missing, and return it.

    Raises:
        OutputError: it cannot be made or written to, or is a file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{option} {path}: cannot make the folder: {error.strerror or error}") from error
    _try_to_write(path, option, path)
    return path


def _files_in(source: str) -> Iterator[Path]:
    """What an input may mean: itself, a part of it, or a part of it as a module of this folder."""
    yield Path(source)
    for part in (source.partition(":")[2], *re.split("[:,=]", source)):
        yield Path(part)
        yield Path(part.replace(".", "/") + ".py")


def _same_file(target: Path, source: Path) -> bool:
    return source.is_file() and target.exists() and target.samefile(source)


def _try_to_write(folder: Path, option: str, named: Path) -> None:
    if not folder.is_dir():
        raise OutputError(f"{option} {named}: there is no folder {folder}; create it first")
    try:
        # Asking the file system is the only sure test: permissions, read-only mounts and quotas all count.
        handle, probe = tempfile.mkstemp(prefix=".unit-fast-", dir=folder)
    except OSError as error:
        raise OutputError(f"{option} {named}: cannot write to {folder}: {error.strerror or error}") from error
    os.close(handle)
    Path(probe).unlink()
