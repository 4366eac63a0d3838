"""The "auto" backend on the CPU: torch.compile or ONNX Runtime, whichever is measured to be faster."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from unit_fast.capture import batch_size
from unit_fast.errors import BackendUnavailableError, ParityError, UnitFastWarning
from unit_fast.runtime.calls import Call
from unit_fast.runtime.compiled import Compiled
from unit_fast.runtime.eager import Eager
from unit_fast.runtime.explain import SiteNote
from unit_fast.runtime.onnx_session import OnnxSession
from unit_fast.runtime.program import Program
from unit_fast.runtime.runner import Inspector
from unit_fast.timing import burst

# In turn, so that a clock that drifts or a neighbour that wakes up meets both alike. 0.5 s a backend and batch size.
ROUNDS = 5
SECONDS = 0.1
# ONNX Runtime must be faster by more than repeated measurements differ.
MARGIN = 0.97


class FallbackWarning(UnitFastWarning):
    """``backend="auto"`` could not take the faster backend."""


@dataclass(frozen=True)
class _Choice:
    """What runs one batch size, and the median seconds of each that was measured."""

    name: str
    seconds: dict[str, float]

    def __str__(self) -> str:
        times = [f"{name} {1e3 * seconds:.3g} ms" for name, seconds in sorted(self.seconds.items(), key=lambda p: p[1])]
        return " against ".join(times) or "nothing else can run it"


class Automatic:
    """Measures its candidates at warm-up, per batch size, each compared with the eager reference first.

    Batch sizes that were not warmed up take what the nearest one took; before any warm-up torch.compile runs. What
    cannot run or disagrees with the reference is dropped with a warning; with nothing left, the graph runs eagerly.
    """

    candidates: Mapping[str, Callable[[Program], Inspector]] = {"compile": Compiled, "onnxruntime": OnnxSession}
    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(self, program: Program) -> None:
        self._program = program
        self._made: dict[str, Inspector] = {}
        self._dropped: set[str] = set()
        self._choices: dict[int, _Choice] = {}

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why there is nothing to choose between."""
        reasons = (Compiled.unavailable(device, dtype), OnnxSession.unavailable(device, dtype))
        return "; ".join(reason for reason in reasons if reason is not None) or None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output."""
        return self._by_choice(self._name_for(args, kwargs), lambda runner: runner(*args, **kwargs))

    def monitor(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """The model's output, and the number of activations above their bound, (N, sites): by torch.compile."""
        counted: tuple[Any, Tensor] = self._by_choice("compile", lambda runner: runner.monitor(*args, **kwargs))
        return counted

    def inspect(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor, Tensor]:
        """The model's output, the counts, and the largest excess over a bound, (N, sites) each: by torch.compile."""
        found: tuple[Any, Tensor, Tensor] = self._by_choice("compile", lambda runner: runner.inspect(*args, **kwargs))
        return found

    def warmup(self, batch_sizes: Sequence[int], monitor: bool = False) -> None:
        """Verify, measure and choose for these batch sizes."""
        for size in batch_sizes:
            call = self._program.example.of_size(size)
            running = {}
            for name in self.candidates:
                runner = self._warmed(name, size)
                if runner is not None:
                    running[name] = runner
            seconds = self._measure(running, call) if len(running) > 1 else {}
            self._choices[size] = _Choice(_fastest(seconds) if seconds else next(iter(running), "eager"), seconds)
            if monitor:
                self.monitor(*call.args, **call.kwargs)
        needed = {choice.name for choice in self._choices.values()} | ({"compile"} if monitor else set())
        self._made = {name: runner for name, runner in self._made.items() if name in needed}  # the rest is only memory

    def explain(self) -> list[SiteNote]:
        """What was chosen for each batch size, by which measurement."""
        if not self._choices:
            runs, why = "Inductor", "until warmup() measures it against ONNX Runtime"
            return [SiteNote(site, "what is pointwise around it", runs, why) for site in self._program.bounds]
        names = list(dict.fromkeys(choice.name for choice in self._choices.values()))
        why = "; ".join(f"batch {size}: {choice}" for size, choice in sorted(self._choices.items()))
        rows = zip(*(self._runner(name).explain() for name in names), strict=True)
        return [
            SiteNote(
                notes[0].site,
                " / ".join(dict.fromkeys(note.fused for note in notes)),
                " / ".join(note.runs for note in notes),
                why,
            )
            for notes in rows
        ]

    def _name_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        choices = self._choices
        if not choices:
            return "compile"
        if len(choices) == 1:
            return next(iter(choices.values())).name
        size = batch_size(args, kwargs)
        known = choices.get(size)
        if known is None:
            known = choices[min(choices, key=lambda warmed: max(warmed, size) / max(1, min(warmed, size)))]
        return known.name

    def _by_choice(self, name: str, use: Callable[[Inspector], Any]) -> Any:
        """``use`` with the named candidate, or with the first that works."""
        if name not in self._dropped:
            try:
                return use(self._runner(name))
            except (BackendUnavailableError, ParityError) as error:
                self._drop(name, error)
        for other in (*self.candidates, "eager"):
            if other not in self._dropped:
                try:
                    return use(self._runner(other))
                except (BackendUnavailableError, ParityError) as error:
                    self._drop(other, error)
        raise AssertionError("the eager graph is its own reference")

    def _warmed(self, name: str, size: int) -> Inspector | None:
        if name in self._dropped:
            return None
        try:
            runner = self._runner(name)
            runner.warmup([size])
        except (BackendUnavailableError, ParityError) as error:
            self._drop(name, error)
            return None
        return runner

    def _drop(self, name: str, error: Exception) -> None:
        self._dropped.add(name)
        self._made.pop(name, None)
        warnings.warn(f"running without the {name} backend: {error}", FallbackWarning, stacklevel=4)

    def _runner(self, name: str) -> Inspector:
        runner = self._made.get(name)
        if runner is None:
            make: Callable[[Program], Inspector] = self.candidates.get(name, Eager)
            runner = self._made.setdefault(name, make(self._program))
        return runner

    def _measure(self, runners: Mapping[str, Inspector], call: Call) -> dict[str, float]:
        taken: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(ROUNDS):
            for name, runner in runners.items():
                runner(*call.args, **call.kwargs)  # the other's threads have gone to sleep by its end
                once = lambda runner=runner: runner(*call.args, **call.kwargs)  # noqa: E731
                taken[name].extend(burst(once, SECONDS, self.clock))
        return {name: median(seconds) for name, seconds in taken.items()}


def _fastest(seconds: Mapping[str, float]) -> str:
    """The first, unless another is faster by more than the margin."""
    first, *others = seconds
    best = min(others, key=lambda name: seconds[name])
    return best if seconds[best] < MARGIN * seconds[first] else first
