"""Run a search for bounds step by step: progress, Ctrl-C, checkpoint and resume, whatever the recipe."""

import hashlib
import io
import json
import logging
import pickle
import signal
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unit_fast.calibration.context import CalibrationContext
from unit_fast.calibration.progress import ProgressStep, StepClock
from unit_fast.errors import DataError, ToleranceError, UnitFastWarning
from unit_fast.files import OutputError, atomic_write

_logger = logging.getLogger(__name__)

# A checkpoint costs a few milliseconds a million bounds; losing half a minute of work is what a user forgives.
_CHECKPOINT_SECONDS = 30.0


class InterruptedWarning(UnitFastWarning):
    """A calibration was stopped early and returned the best bounds so far."""


class CheckpointWarning(UnitFastWarning):
    """The state of a calibration could not be saved; the calibration goes on."""


class Search(ABC):
    """One run of a recipe, a step at a time.

    Attributes:
        total: steps at most.
        done: steps taken.
        best: the tightest bounds so far that are within the tolerance, None while there are none.
        validation_accuracy: of the last step's bounds, in [0, 1]; None before the first.
    """

    total: int
    done: int = 0
    best: dict[str, Tensor] | None = None
    validation_accuracy: float | None = None

    @abstractmethod
    def step(self) -> None:
        """Take one step and judge its bounds."""

    @abstractmethod
    def tightness(self) -> float:
        """How far the bounds came down: 1 − (mean bound now / mean bound at the start)."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Tensors and plain values from which :meth:`restore` goes on exactly."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""

    @property
    def finished(self) -> bool:
        """Whether another step would be of no use."""
        return self.done >= self.total

    def settle(self) -> None:  # noqa: B027 - a search that judges every step has nothing to do
        """Bring the bounds as they are within the tolerance: called at the end, and on Ctrl-C."""

    def close(self) -> None:  # noqa: B027 - most searches hold nothing
        """Let go of what the search holds on disk."""

    @abstractmethod
    def failure(self) -> str:
        """What to say when the search ended without bounds within the tolerance."""


def run(search: Search, context: CalibrationContext, settings: dict[str, Any]) -> dict[str, Tensor]:
    """Step until finished and return the best bounds.

    On Ctrl-C the best so far is returned with an :class:`InterruptedWarning`; without any, KeyboardInterrupt goes on.
    With ``context.checkpoint`` the state is saved on the way and on Ctrl-C, and a file that is there is resumed from;
    it is removed at the end.

    Raises:
        ToleranceError: no step was within the tolerance.
        DataError: the checkpoint is of another run, or damaged.
    """
    try:
        return _run(search, context, settings)
    finally:
        search.close()


def _run(search: Search, context: CalibrationContext, settings: dict[str, Any]) -> dict[str, Tensor]:
    path = context.checkpoint
    identity = _identity(context, settings)
    if path is not None and path.exists():
        _resume(path, identity, search, context.device)
        _logger.info("resuming at step %d of %d from %s", search.done, search.total, path)
    clock = StepClock(search.total, search.done)
    saved = time.monotonic()
    interrupted = False
    try:
        with _interrupts_between_steps() as deliver_interrupt:
            while not search.finished:
                search.step()
                search.done += 1
                _report(search, clock, context)
                if path is not None and time.monotonic() - saved > _CHECKPOINT_SECONDS:
                    _write(path, identity, search)
                    saved = time.monotonic()
                deliver_interrupt()
    except KeyboardInterrupt:
        interrupted = True
        if path is not None:
            _write(path, identity, search)
    search.settle()
    context.notes["steps"] = search.done
    if search.best is None:
        if interrupted:
            raise KeyboardInterrupt
        raise ToleranceError(search.failure())
    if interrupted:
        context.notes["interrupted"] = True
        resume = "" if path is None else f"; resume from {path} to go on"
        warnings.warn(
            f"interrupted after step {search.done} of {search.total}: these are the best bounds so far{resume}",
            InterruptedWarning,
            stacklevel=4,
        )
    elif path is not None:
        path.unlink(missing_ok=True)
    return {name: bound.detach() for name, bound in search.best.items()}


def _report(search: Search, clock: StepClock, context: CalibrationContext) -> None:
    context.progress(
        ProgressStep(
            step=search.done,
            total=search.total,
            validation_accuracy=search.validation_accuracy,
            tightness=search.tightness(),
            seconds_left=clock.seconds_left(search.done),
        )
    )


def _identity(context: CalibrationContext, settings: dict[str, Any]) -> str:
    parts = {
        "model": context.graph.meta["fingerprint"].sha256,
        "sites": [site.name for site in context.sites],
        "granularity": context.granularity,
        "seed": context.seed,
        "settings": settings,
        "fit": context.fit_indices.tolist(),
        "validation": context.validation_indices.tolist(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write(path: Path, identity: str, search: Search) -> None:
    content = io.BytesIO()
    torch.save({"identity": identity, "done": search.done, "best": search.best, "state": search.state()}, content)
    try:
        atomic_write(path, lambda temporary: temporary.write_bytes(content.getbuffer()))
    except OutputError as error:
        # The search itself is worth more than the means to resume it.
        warnings.warn(f"no checkpoint was written: {error}", CheckpointWarning, stacklevel=4)


def _resume(path: Path, identity: str, search: Search, device: torch.device) -> None:
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        same = content["identity"] == identity
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} is no checkpoint of a calibration, or is damaged; delete it to start over") from error
    if not same:
        raise DataError(
            f"{path} is a checkpoint of another calibration: model, data, settings or seed differ; "
            "delete it or name another file"
        )
    search.restore(content["state"])
    search.done, search.best = content["done"], content["best"]


@contextmanager
def _interrupts_between_steps() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the yielded function is called, so that no step is left half done."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield lambda: None  # no thread for signals; or a handler that is not Python's, which could not be put back
        return
    pending: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: pending.append(number))

    def deliver() -> None:
        if pending:
            raise KeyboardInterrupt

    try:
        yield deliver
    finally:
        signal.signal(signal.SIGINT, previous)
