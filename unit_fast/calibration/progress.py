"""How a calibration tells where it is: a callback for programs, a bar for people."""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress


@dataclass(frozen=True)
class ProgressStep:
    """One report.

    Attributes:
        step: steps done so far, 0 ≤ step ≤ total.
        total: steps at most; a method may end earlier.
        validation_accuracy: of the sanitised model on the validation part, in [0, 1]; None where not measured.
        tightness: how far the bounds came down, 1 − (mean bound now / mean bound at the start); None where the
            method does not tighten.
        seconds_left: at the present pace; None before the first step is done.
    """

    step: int
    total: int
    validation_accuracy: float | None = None
    tightness: float | None = None
    seconds_left: float | None = None


@runtime_checkable
class Progress(Protocol):
    """Anything that can be called with a :class:`ProgressStep`. What it raises ends the calibration."""

    def __call__(self, step: ProgressStep) -> object:
        """Take one report."""


def silent(step: ProgressStep) -> None:
    """Report nothing: the default."""


class StepClock:
    """Estimate the time left from the mean time of the steps done in this process."""

    def __init__(self, total: int, done: int = 0) -> None:
        self._total = total
        self._first = done
        self._start = time.monotonic()

    def seconds_left(self, step: int) -> float | None:
        """Seconds until ``total`` when ``step`` steps are done; None while none was done here."""
        done = step - self._first
        if done <= 0:
            return None
        return (time.monotonic() - self._start) / done * (self._total - step)


class ProgressBar:
    """A rich progress bar, a context manager and a :class:`Progress`.

    Args:
        description: what is running.
        console: a ``rich.console.Console``; None writes to standard error, so that standard output stays clean.
    """

    def __init__(self, description: str = "calibrating", console: "Console | None" = None) -> None:
        self._description = description
        self._console = console
        self._bar: RichProgress | None = None

    def __enter__(self) -> Self:
        # Imported here: rich takes 40 ms to load and most calibrations in programs show no bar.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console or Console(stderr=True),
        )
        self._task = self._bar.add_task(self._description, total=None, figures="")
        self._bar.start()
        return self

    def __call__(self, step: ProgressStep) -> None:
        """Move the bar. Raises RuntimeError outside of the ``with`` block."""
        if self._bar is None:
            raise RuntimeError("a ProgressBar is used inside its `with` block")
        self._bar.update(self._task, completed=step.step, total=step.total, figures=figures(step))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def figures(step: ProgressStep) -> str:
    """The figures of a report as one short line, those that are known."""
    parts = []
    if step.validation_accuracy is not None:
        parts.append(f"accuracy {step.validation_accuracy:.2%}")
    if step.tightness is not None:
        parts.append(f"tightened {step.tightness:.1%}")
    if step.seconds_left is not None:
        minutes, seconds = divmod(round(step.seconds_left), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    return "  ".join(parts)


def reporting(progress: Progress | bool | None, description: str = "calibrating") -> AbstractContextManager[Progress]:
    """A context manager giving the callback to use: True a bar, None or False silence, else ``progress`` itself."""
    if progress is True:
        return ProgressBar(description)
    if progress is None or progress is False:
        return nullcontext(silent)
    return nullcontext(progress)
