"""What a part is given to measure with: where, for how long, on how many processes, and where its results go."""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.results_file import write_results

WRITE_EVERY = 5.0  # seconds; a run that is cut off loses no more


@dataclass
class Session:
    """One run of ``python -m benchmarks.gpu``.

    Attributes:
        folder: for the JSON files.
        dry_run: tiny shapes on the CPU, in Triton's interpreter; times mean nothing.
        deadline: of the part that runs, by ``time.monotonic``.
        workers: how many processes may run side by side.
        device: "cuda" or "cpu".
        device_name: as the driver has it.
        ceilings: what the part "environment" measured, once it has.
    """

    folder: Path
    dry_run: bool
    deadline: float
    workers: int
    device: str
    device_name: str
    ceilings: dict[str, Any] = field(default_factory=dict)
    _written: dict[str, float] = field(default_factory=dict)

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; never negative."""
        return max(0.0, self.deadline - time.monotonic())

    def file_name(self, part: str) -> str:
        """``gpu_h200_values`` for the part "values" on an "NVIDIA H200"."""
        device = "dry_run" if self.dry_run else re.sub(r"^nvidia_|^geforce_", "", _slug(self.device_name))
        return f"gpu_{device}_{part}"

    def write(self, part: str, figures: dict[str, Any]) -> Path:
        """Write the part's JSON file, whole."""
        self._written[part] = time.monotonic()
        return write_results(self.file_name(part), {"dry_run": self.dry_run} | figures, self.folder)

    def write_sometimes(self, part: str, figures: dict[str, Any]) -> None:
        """``write``, unless that was done a moment ago: for a loop that adds to its figures."""
        if time.monotonic() - self._written.get(part, 0.0) >= WRITE_EVERY:
            self.write(part, figures)


def open_session(folder: Path, *, dry_run: bool, workers: int, seconds: float) -> Session:
    """A session on the GPU, or on the CPU for a dry run.

    Raises:
        RuntimeError: there is no GPU and no dry run was asked for.
    """
    if dry_run:
        return Session(folder, True, time.monotonic() + seconds, min(workers, 2), "cpu", "cpu")
    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no GPU; --dry-run walks the whole path on the CPU with tiny shapes")
    memory = torch.cuda.get_device_properties(0).total_memory
    workers = max(1, min(workers, memory // 8_000_000_000))  # VGG-16's widest layer at batch 256 takes 7 GB
    return Session(folder, False, time.monotonic() + seconds, workers, "cuda", torch.cuda.get_device_name(0))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
