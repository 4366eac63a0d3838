"""What was measured, on disk: a JSON file an environment in the user's cache, and the tables that ship.

A file is replaced whole, after what other processes wrote meanwhile was read and merged. Whatever is wrong with it (it
is damaged, of another format, of another GPU, or its folder cannot be written) costs a measurement and a warning,
never a result.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unit_fast.kernels.dispatch.environment import Environment

_logger = logging.getLogger(__name__)

FORMAT = 1
TABLES = Path(__file__).parent.parent / "tables"
LOCK_PATIENCE = 2.0
"""Seconds to wait for another process's lock; then the file is written without it, which may lose its entries."""


class DispatchWarning(UserWarning):
    """A candidate or a file of measurements cannot be used; everything goes on without it."""


@dataclass(frozen=True)
class Record:
    """The outcome for one problem.

    Attributes:
        candidate: the name of the one to use.
        microseconds: of every candidate that was timed.
        dropped: why others were not.
    """

    candidate: str
    microseconds: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, value: Any) -> Record | None:
        """The record that JSON holds; None where it is none."""
        if not isinstance(value, dict) or not isinstance(value.get("candidate"), str):
            return None
        times, dropped = value.get("microseconds", {}), value.get("dropped", {})
        if not isinstance(times, dict) or not isinstance(dropped, dict):
            return None
        if not all(isinstance(t, int | float) for t in times.values()):
            return None
        return cls(value["candidate"], {k: float(t) for k, t in times.items()}, {k: str(w) for k, w in dropped.items()})


def cache_folder() -> Path:
    """UNIT_FAST_CACHE, else unit_fast in XDG_CACHE_HOME, else in ~/.cache."""
    own = os.environ.get("UNIT_FAST_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "unit_fast"


class Store:
    """The records of one environment, by ``Problem.key``; safe from several threads and processes."""

    def __init__(self, environment: Environment, folder: Path | None = None, tables: Path = TABLES) -> None:
        self.path = (folder if folder is not None else cache_folder()) / environment.file_name
        self._environment = environment
        self._table_path = tables / f"{environment.name}.json"
        self._lock = threading.Lock()
        self._records: dict[str, Record] | None = None
        self._table: dict[str, Record] | None = None
        self._warned = False

    def get(self, key: str) -> Record | None:
        """What was measured here for ``key``."""
        with self._lock:
            if self._records is None:
                self._records = self._read()
            return self._records.get(key)

    def records(self) -> dict[str, Record]:
        """All that was measured here."""
        with self._lock:
            if self._records is None:
                self._records = self._read()
            return dict(self._records)

    def shipped(self, key: str) -> Record | None:
        """What was measured for ``key`` on a GPU of this name, with whatever versions the table was made with."""
        return self._shipped_table().get(key)

    def shipped_count(self) -> int:
        """How many problems the shipped table has an answer for."""
        return len(self._shipped_table())

    def _shipped_table(self) -> dict[str, Record]:
        with self._lock:
            if self._table is None:
                self._table = read_table(self._table_path)
            return self._table

    def put(self, key: str, record: Record) -> None:
        """Keep ``record``, on disk too if that can be."""
        with self._lock:
            if self._records is None:
                self._records = self._read()
            self._records[key] = record
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with _exclusive(self.path.with_suffix(".lock")):
                    self._records = self._read() | self._records
                    _replace(self.path, self._as_json(self._records))
            except OSError as error:
                self._warn(
                    f"measurements cannot be kept in {self.path}: {error.strerror or error}; every process will "
                    "measure again. Make the folder writable, or name another in UNIT_FAST_CACHE"
                )

    def _read(self) -> dict[str, Record]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            self._warn(f"the measurements in {self.path} cannot be read ({error}); they are made again")
            return {}
        identity = content.get("environment") if isinstance(content, dict) else None
        if identity != self._environment.identity or content.get("format") != FORMAT:
            self._warn(f"the measurements in {self.path} are of another format or GPU; they are made again")
            return {}
        return _records_in(content)

    def _as_json(self, records: dict[str, Record]) -> str:
        content = {
            "format": FORMAT,
            "environment": self._environment.identity,
            "choices": {key: asdict(records[key]) for key in sorted(records)},
        }
        return json.dumps(content, indent=1)

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"unit_fast.kernels: {message}", DispatchWarning, stacklevel=2)


def read_table(path: Path) -> dict[str, Record]:
    """The records of a table that ships; none where there is no such table."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return _records_in(content) if content.get("format") == FORMAT else {}


def write_table(path: Path, environment: Environment, records: dict[str, Record]) -> None:
    """Write the table of a GPU, as it ships: what was measured, and with which versions."""
    content = {
        "format": FORMAT,
        "measured_with": environment.identity,
        "choices": {key: asdict(records[key]) for key in sorted(records)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, json.dumps(content, indent=1) + "\n")


def _records_in(content: dict[str, Any]) -> dict[str, Record]:
    choices = content.get("choices")
    parsed = {k: Record.parse(v) for k, v in choices.items()} if isinstance(choices, dict) else {}
    return {key: record for key, record in parsed.items() if record is not None}


def _replace(path: Path, text: str) -> None:
    # As unit_fast.files.atomic_write does it; the kernels import nothing of ours, and a cache needs no fsync.
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file at ``path``, where the system has such locks; for a while, then go on without it."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        give_up = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= give_up:
                    _logger.info("another process holds %s; writing without it", path)
                    break
                time.sleep(0.01)
        yield
