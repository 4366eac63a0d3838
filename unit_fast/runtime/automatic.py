"""The "auto" backend on the CPU: torch.compile, ONNX Runtime or OpenVINO, whichever is measured to be fastest."""

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from unit_fast.capture import batch_size
from unit_fast.errors import BackendUnavailableError, DataError, FallbackWarning, ParityError
from unit_fast.runtime.calls import Call
from unit_fast.runtime.compiled import Compiled
from unit_fast.runtime.eager import Eager
from unit_fast.runtime.explain import SiteNote
from unit_fast.runtime.program import Program
from unit_fast.runtime.runner import Inspector
from unit_fast.runtime.sessions import OnnxSession, OpenVinoSession
from unit_fast.timing import burst

# In turn, so that a clock that drifts or a neighbour that wakes up meets all alike. 0.5 s a backend and batch size;
# three times that for those so close to the fastest that half a second does not tell.
ROUNDS = 5
MOST_ROUNDS = 15
CLOSE = 1.05
SECONDS = 0.1

CANDIDATES: Mapping[str, type[Inspector]] = {
    "compile": Compiled,
    "onnxruntime": OnnxSession,
    "openvino": OpenVinoSession,
}

_Kind = tuple[tuple[torch.Size, torch.dtype, torch.device], ...]


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

    Batch sizes that were not warmed up take what the nearest one took. Before any warm-up the first candidate runs,
    which also counts for ``monitor`` and takes inputs that the others refuse. What cannot run or disagrees with the
    reference is dropped with a warning; with nothing left, the graph runs eagerly.

    Args:
        program: what it runs.
        candidates: by name, the first as above; all of ``CANDIDATES`` that can run when omitted.
    """

    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(
        self, program: Program, candidates: Mapping[str, Callable[[Program], Inspector]] | None = None
    ) -> None:
        self._program = program
        self._candidates = able(torch.device("cpu"), torch.float32) if candidates is None else candidates
        self._first = next(iter(self._candidates))
        self._made: dict[str, Inspector] = {}
        self._lock = threading.Lock()
        self._dropped: dict[str, str] = {}
        self._refused: set[_Kind] = set()
        self._choices: dict[int, _Choice] = {}

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why there is nothing to choose between: torch.compile cannot run, or nothing else can."""
        here = able(device, dtype)
        if "compile" in here and len(here) > 1:
            return None
        reasons = (candidate.unavailable(device, dtype) for candidate in CANDIDATES.values())
        return "; ".join(dict.fromkeys(reason for reason in reasons if reason is not None))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output."""
        return self._by_choice(self._name_for(args, kwargs), "__call__", args, kwargs)

    def monitor(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """The model's output, and the number of activations above their bound, (N, sites): by torch.compile."""
        counted: tuple[Any, Tensor] = self._by_choice(self._first, "monitor", args, kwargs)
        return counted

    def inspect(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor, Tensor]:
        """The model's output, the counts, and the largest excess over a bound, (N, sites) each: by torch.compile."""
        found: tuple[Any, Tensor, Tensor] = self._by_choice(self._first, "inspect", args, kwargs)
        return found

    def warmup(self, batch_sizes: Sequence[int], monitor: bool = False) -> None:
        """Verify, measure and choose for these batch sizes."""
        for size in batch_sizes:
            call = self._program.example.of_size(size)
            running = {}
            for name in self._candidates:
                runner = self._warmed(name, size, monitor and name == self._first)
                if runner is not None:
                    running[name] = runner
            several = len(running) > 1
            choice = self._measure(running, call) if several else _Choice(next(iter(running), "eager"), {})
            self._choices = {**self._choices, size: choice}  # others may be reading the old ones
            if monitor:
                self.monitor(*call.args, **call.kwargs)
        needed = {choice.name for choice in self._choices.values()} | ({self._first} if monitor else set())
        with self._lock:  # the rest is only memory
            self._made = {name: runner for name, runner in self._made.items() if name in needed}

    def explain(self) -> list[SiteNote]:
        """What was chosen for each batch size, by which measurement."""
        choices, dropped = self._choices, self._dropped
        chosen = [choice.name for choice in choices.values()] or [self._first]
        names = list(dict.fromkeys(next(self._order(name)) for name in chosen))
        reasons = [f"batch {size}: {choice}" for size, choice in sorted(choices.items())]
        others = [name for name in self._candidates if name not in (*dropped, *names)]
        if not reasons and others:
            reasons.append(f"until warmup() measures it against {' and '.join(others)}")
        reasons += [f"without {name}: {reason}" for name, reason in dropped.items()]
        why = "; ".join(reasons)
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
            return self._first
        if len(choices) == 1:
            return next(iter(choices.values())).name
        size = batch_size(args, kwargs)
        known = choices.get(size)
        if known is None:
            known = choices[min(choices, key=lambda warmed: max(warmed, size) / max(1, min(warmed, size)))]
        return known.name

    def _by_choice(self, name: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``method`` of the named candidate returns, or that of the first that works."""
        if self._refused and _kind(args, kwargs) in self._refused:
            name = self._first
        refused = False
        for standing in self._order(name):
            try:
                result = getattr(self._runner(standing), method)(*args, **kwargs)
            except (BackendUnavailableError, ParityError) as error:
                self._drop(standing, error)
            except DataError:
                if standing in (self._first, "eager"):
                    raise
                refused = True
            else:
                if refused:
                    self._refused.add(_kind(args, kwargs))
                return result
        raise AssertionError("the eager graph is its own reference")

    def _order(self, name: str) -> Iterator[str]:
        """What is left to run, the named one first."""
        dropped = self._dropped
        if name not in dropped:
            yield name
        yield from (other for other in (*self._candidates, "eager") if other != name and other not in dropped)

    def _warmed(self, name: str, size: int, monitor: bool) -> Inspector | None:
        if name in self._dropped:
            return None
        try:
            runner = self._runner(name)
            runner.warmup([size], monitor)
        except (BackendUnavailableError, DataError, ParityError) as error:
            self._drop(name, error)
            return None
        return runner

    def _drop(self, name: str, error: Exception) -> None:
        with self._lock:
            self._dropped = {**self._dropped, name: str(error)}
            self._made.pop(name, None)
        warnings.warn(f"running without the {name} backend: {error}", FallbackWarning, stacklevel=4)

    def _runner(self, name: str) -> Inspector:
        runner = self._made.get(name)
        if runner is None:
            make = self._candidates.get(name, Eager)
            with self._lock:
                runner = self._made.get(name)
                if runner is None:
                    runner = self._made[name] = make(self._program)
        return runner

    def _measure(self, runners: Mapping[str, Inspector], call: Call) -> _Choice:
        taken: dict[str, list[float]] = {name: [] for name in runners}
        medians: dict[str, float] = {}
        close = list(runners)
        for done in range(MOST_ROUNDS):
            if done == ROUNDS:
                # From here on among these alone, all measured as long: the clock may change after the others are out.
                close = [name for name in close if medians[name] <= CLOSE * min(medians.values())]
                if len(close) == 1:
                    break
            for name in close:
                once = partial(runners[name], *call.args, **call.kwargs)
                once()  # the other's threads have gone to sleep by its end
                taken[name].extend(burst(once, SECONDS, self.clock))
                medians[name] = median(taken[name])
        return _Choice(min(close, key=medians.__getitem__), medians)


def able(device: torch.device, dtype: torch.dtype) -> dict[str, type[Inspector]]:
    """The candidates that can run on ``device`` in ``dtype``: what is not installed is none."""
    return {name: made for name, made in CANDIDATES.items() if made.unavailable(device, dtype) is None}


def _kind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Kind:
    tensors = (leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    return tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
