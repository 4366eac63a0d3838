"""What "auto" measured and chose for a network and a batch size, kept on disk for the processes to come.

The file is one of the kernels' (:class:`unit_fast.kernels.dispatch.Store`), in a folder of its own. Where Triton is
missing there are no kernels, and every process measures for itself.
"""

import hashlib
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from unit_fast.errors import FallbackWarning
from unit_fast.processor import processor
from unit_fast.runtime.program import Program

if TYPE_CHECKING:
    from unit_fast.kernels.dispatch import Record

_RUNTIMES = (("onnxruntime", "onnxruntime-gpu"), ("openvino",))  # by the packages that they come in


@dataclass(frozen=True)
class Choice:
    """What runs one batch size, and the median seconds of each that was measured, now or by an earlier process."""

    name: str
    seconds: dict[str, float]
    remembered: bool = False

    def __str__(self) -> str:
        times = [f"{name} {1e3 * seconds:.3g} ms" for name, seconds in sorted(self.seconds.items(), key=lambda p: p[1])]
        text = " against ".join(times) or "nothing else can run it"
        return f"{text}, as measured before" if self.remembered else text


class Store(Protocol):
    """Where choices are kept."""

    def get(self, key: str) -> "Record | None":
        """What was chosen for ``key``."""

    def put(self, key: str, record: "Record") -> None:
        """Keep a choice."""


class Memory:
    """The choices for one program among the same candidates.

    Args:
        program: what is run.
        candidates: the names of those that can run it.
        store: of the device that the program is on.
    """

    def __init__(self, program: Program, candidates: Iterable[str], store: Store) -> None:
        self._store = store
        bounds = program.bounds
        samples = [tuple(tensor.shape[1:]) for tensor in program.example.tensors()]
        self._network = f"{bounds.fingerprint.sha256} {bounds.granularity} {program.dtype} of {samples}"
        self._candidates = ", ".join(candidates)
        self._device = program.device

    def get(self, size: int) -> Choice | None:
        """What an earlier process chose for this batch size."""
        record = self._store.get(self._key(size))
        if record is None:
            return None
        return Choice(record.candidate, {name: 1e-6 * t for name, t in record.microseconds.items()}, remembered=True)

    def put(self, size: int, choice: Choice) -> None:
        """Keep what was chosen for this batch size among all candidates."""
        from unit_fast.kernels.dispatch import Record

        microseconds = {name: 1e6 * seconds for name, seconds in choice.seconds.items()}
        self._store.put(self._key(size), Record(choice.name, microseconds))

    def _key(self, size: int) -> str:
        return f"{size} of {self._network} by {self._candidates} of {_sources()} {_where(self._device)}"


def store_of(device: torch.device) -> Store | None:
    """Where choices for ``device`` are kept; None without Triton, and, with a warning, where there is no place."""
    try:
        from unit_fast.kernels.dispatch import Store, cache_folder, environment_of

        return Store(environment_of(device), cache_folder() / "networks")
    except Exception as error:  # noqa: BLE001 - a Triton that does not fit this torch, no home folder: all goes on
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "triton":
            return None
        reason = str(error) or type(error).__name__
        warnings.warn(
            f"what auto chooses is not kept, and every process measures: {reason}", FallbackWarning, stacklevel=4
        )
        return None


def _where(device: torch.device) -> str:
    """What else times depend on, beside what the store is kept apart by: the device and the compilers."""
    if device.type == "cuda":
        from unit_fast.kernels.dispatch.dispatcher import policy_from_environment

        return f"with {policy_from_environment()} kernels"
    runtimes = [f"{names[0]} {_version(names)}" for names in _RUNTIMES]
    return f"on {processor()} with {torch.get_num_threads()} threads and {' and '.join(runtimes)}"


def _version(names: Iterable[str]) -> str:
    """That of the first package that is installed."""
    for name in names:
        with suppress(PackageNotFoundError):
            return version(name)
    return "unknown"


@cache
def _sources() -> str:
    """Changes with every file that decides how a network runs, but for the kernels, which have a digest of theirs."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for pattern in ("*.py", "export/**/*.py", "fusion/**/*.py", "runtime/**/*.py", "kernels/dispatch/**/*.py"):
        for path in sorted(package.glob(pattern)):
            digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]
