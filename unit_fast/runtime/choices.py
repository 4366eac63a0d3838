"""What "auto" measured and chose for a network and a batch size, kept on disk for the processes to come.

The file is one of the kernels' (:class:`unit_fast.kernels.dispatch.Store`), in a folder of its own. Where Triton is
missing there are no kernels, and every process measures for itself.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from unit_fast.processor import processor
from unit_fast.runtime.program import Program

if TYPE_CHECKING:
    from unit_fast.kernels.dispatch import Record


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
        network = f"{bounds.fingerprint.sha256} {bounds.granularity} {program.dtype} of {samples}"
        self._key = f"{network} by {', '.join(candidates)} of {_sources()} {_where(program.device)}"

    def get(self, size: int) -> Choice | None:
        """What an earlier process chose for this batch size."""
        record = self._store.get(f"{size} of {self._key}")
        if record is None:
            return None
        return Choice(record.candidate, {name: 1e-6 * t for name, t in record.microseconds.items()}, remembered=True)

    def put(self, size: int, choice: Choice, dropped: dict[str, str]) -> None:
        """Keep what was chosen for this batch size, and why others were out."""
        from unit_fast.kernels.dispatch import Record

        microseconds = {name: 1e6 * seconds for name, seconds in choice.seconds.items()}
        self._store.put(f"{size} of {self._key}", Record(choice.name, microseconds, dropped))


def store_of(device: torch.device) -> Store | None:
    """Where choices for ``device`` are kept; None without Triton."""
    try:
        from unit_fast.kernels.dispatch import Store, cache_folder, environment_of
    except ImportError:
        return None
    return Store(environment_of(device), cache_folder() / "networks")


def _where(device: torch.device) -> str:
    """What else times depend on, beside what the store is kept apart by: the device and the compilers."""
    if device.type == "cuda":
        from unit_fast.kernels.dispatch.dispatcher import policy_from_environment

        return f"with {policy_from_environment()} kernels"
    runtimes = [f"{name} {_version(name)}" for name in ("onnxruntime", "openvino")]
    return f"on {processor()} with {torch.get_num_threads()} threads and {' and '.join(runtimes)}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # it may be installed under another name, as for GPUs
        return "unknown"


@cache
def _sources() -> str:
    """Changes with every file that decides how a network runs, but for the kernels, which have a digest of theirs."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for folder in (".", "export", "fusion", "runtime", "kernels/dispatch"):
        for path in sorted((package / folder).glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]
