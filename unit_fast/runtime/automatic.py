"""The "auto" backend: of what can run on the device, whichever is measured to be fastest.

On the CPU these are torch.compile, ONNX Runtime and OpenVINO, on a GPU our kernels and torch.compile. A choice is kept
on disk, so that the next process compiles only what was chosen.
"""

import gc
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from unit_fast.capture import batch_size
from unit_fast.errors import BackendUnavailableError, DataError, FallbackWarning, ParityError
from unit_fast.runtime.calls import Call
from unit_fast.runtime.choices import Choice, Memory, Store, store_of
from unit_fast.runtime.compiled import Compiled
from unit_fast.runtime.cuda_graphs import MOST_PADDING
from unit_fast.runtime.eager import Eager
from unit_fast.runtime.explain import SiteNote
from unit_fast.runtime.flat import Key, key_of
from unit_fast.runtime.fused import Fused
from unit_fast.runtime.program import Program
from unit_fast.runtime.runner import Runner
from unit_fast.runtime.sessions import OnnxSession, OpenVinoSession
from unit_fast.timing import burst

# In turn, so that a clock that drifts or a neighbour that wakes up meets all alike. 0.5 s a backend and batch size;
# three times that for those so close to the fastest that half a second does not tell.
ROUNDS = 5
MOST_ROUNDS = 15
CLOSE = 1.05
SECONDS = 0.1

CANDIDATES: Mapping[str, Mapping[str, type[Runner]]] = {
    "cpu": {"compile": Compiled, "onnxruntime": OnnxSession, "openvino": OpenVinoSession},
    "cuda": {"triton": Fused, "compile": Compiled},
}
"""By the type of the device. The first runs what was not measured and counts for ``monitor``."""

_logger = logging.getLogger(__name__)

_UNABLE = (BackendUnavailableError, DataError, ParityError)


class Automatic:
    """Measures its candidates at warm-up, per batch size, each compared with the eager reference first.

    Batch sizes that were not warmed up take what the nearest one took. Before any warm-up the first candidate runs,
    which also counts for ``monitor`` and takes inputs that the others refuse. What cannot run or disagrees with the
    reference is dropped with a warning; with nothing left, the graph runs eagerly.

    Args:
        program: what it runs.
        candidates: by name, the first as above; all of ``CANDIDATES`` that can run on the program's device when
            omitted.
        store: of earlier choices; that of the device when candidates are omitted too, else none.
    """

    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(
        self,
        program: Program,
        candidates: Mapping[str, Callable[[Program], Runner]] | None = None,
        store: Store | None = None,
    ) -> None:
        self._program = program
        self._device = program.device
        if candidates is None:
            candidates = able(program.device, program.dtype)
            store = store_of(program.device) if store is None else store
        self._candidates = candidates
        self._memory = None if store is None else Memory(program, candidates, store)
        self._first = next(iter(self._candidates))
        self._inspecting = next(
            (name for name, kind in self._candidates.items() if hasattr(kind, "inspect")), self._first
        )
        self._made: dict[str, Runner] = {}
        self._reading: set[str] = set()  # those that were warmed up to read the clamps
        self._lock = threading.Lock()
        self._dropped: dict[str, str] = {}
        self._refused: set[Key] = set()
        self._choices: dict[int, Choice] = {}
        # What was chosen for every batch size, while it takes all that comes.
        self._for_all: tuple[str, Runner] | None = None

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why there is nothing to choose between: torch.compile cannot run, or nothing else can."""
        here = able(device, dtype)
        if "compile" in here and len(here) > 1:
            return None
        reasons = (candidate.unavailable(device, dtype) for candidate in _candidates_on(device).values())
        return "; ".join(dict.fromkeys(reason for reason in reasons if reason is not None))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output."""
        alone = self._for_all
        if alone is not None:
            try:
                return alone[1](*args, **kwargs)
            except (BackendUnavailableError, ParityError) as error:
                self._drop(alone[0], error)
            except DataError as error:  # what follows tries it once more, and then others
                _logger.info("%s refuses this call: %s", alone[0], error)
        return self._by_choice(self._name_for(args, kwargs), "__call__", args, kwargs)

    def monitor(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """The model's output, and the number of activations above their bound, (N, sites): by the first candidate."""
        counted: tuple[Any, Tensor] = self._by_choice(self._first, "monitor", args, kwargs)
        return counted

    def inspect(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor, Tensor]:
        """The model's output, the counts, and the largest excess over a bound, (N, sites) each: by torch.compile."""
        found: tuple[Any, Tensor, Tensor] = self._by_choice(self._inspecting, "inspect", args, kwargs)
        return found

    def warmup(self, batch_sizes: Sequence[int], monitor: bool = False) -> None:
        """Verify, measure and choose for these batch sizes."""
        self._compile_ahead(batch_sizes, monitor)
        # Of CUDA graphs the largest first: its memory serves the others.
        for size in sorted(set(batch_sizes), reverse=True) if self._device.type == "cuda" else batch_sizes:
            call = self._program.example.of_size(size)
            choice = self._remembered(size, monitor) or self._measured(size, call, monitor)
            self._choices = {**self._choices, size: choice}  # others may be reading the old ones
            if monitor:
                self.monitor(*call.args, **call.kwargs)
        if monitor:
            self._reading.add(self._first)
        needed = {choice.name for choice in self._choices.values()} | self._reading
        with self._lock:  # the rest is only memory
            self._made = {name: runner for name, runner in self._made.items() if name in needed}
            self._for_all = self._alone()
        if self._device.type == "cuda":
            gc.collect()  # captured graphs hold memory of the GPU, and refer to what made them

    def warm_inspect(self, batch_sizes: Sequence[int]) -> None:
        """Compile ``inspect`` for these batch sizes."""
        self._reading.add(self._inspecting)
        self._by_choice(self._inspecting, "warm_inspect", (batch_sizes,), {})

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
        by_site: dict[str, list[SiteNote]] = {}
        for name in names:
            for note in self._runner(name).explain():
                by_site.setdefault(note.site, []).append(note)
        return [
            SiteNote(
                site,
                " / ".join(dict.fromkeys(note.fused for note in notes)),
                " / ".join(note.runs for note in notes),
                "; ".join(dict.fromkeys(filter(None, [why, *(note.why for note in notes)]))),
            )
            for site, notes in by_site.items()
        ]

    def _name_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        choices = self._choices
        if not choices:
            return self._first
        size = batch_size(args, kwargs)
        known = choices.get(size)
        if known is not None:
            return known.name
        if self._device.type == "cuda":
            # What was captured takes smaller batches too. The first compiles nothing for others, torch.compile does.
            larger = [warmed for warmed in choices if size < warmed <= MOST_PADDING * size]
            return choices[min(larger)].name if larger else self._first
        return choices[min(choices, key=lambda warmed: max(warmed, size) / max(1, min(warmed, size)))].name

    def _alone(self) -> tuple[str, Runner] | None:
        """What runs every batch size. On a GPU none: sizes that were not warmed up run by what compiles nothing."""
        names = {choice.name for choice in self._choices.values()}
        if len(names) != 1 or self._device.type == "cuda" or self._refused or not names.isdisjoint(self._dropped):
            return None
        (name,) = names
        runner = self._made.get(name)
        return None if runner is None else (name, runner)

    def _by_choice(self, name: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``method`` of the named candidate returns, or that of the first that works."""
        if self._refused and _kind(args, kwargs) in self._refused:
            name = self._first
        refused = False
        for standing in self._order(name):
            run = getattr(self._runner(standing), method, None)
            if run is None:  # our kernels only count
                continue
            try:
                result = run(*args, **kwargs)
            except (BackendUnavailableError, ParityError) as error:
                self._drop(standing, error)
            except DataError:
                if standing in (self._first, "eager"):
                    raise
                refused = True
            else:
                if refused:
                    with self._lock:
                        self._refused.add(_kind(args, kwargs))
                        self._for_all = None
                return result
        raise AssertionError("the eager graph is its own reference")

    def _order(self, name: str) -> Iterator[str]:
        """What is left to run, the named one first."""
        dropped = self._dropped
        if name not in dropped:
            yield name
        yield from (other for other in (*self._candidates, "eager") if other != name and other not in dropped)

    def _warmed(self, name: str, size: int, monitor: bool) -> Runner | None:
        if name in self._dropped:
            return None
        try:
            runner = self._runner(name)
            runner.warmup([size], monitor)
        except (*_UNABLE, torch.OutOfMemoryError) as error:
            self._drop(name, error)
            return None
        return runner

    def _drop(self, name: str, error: Exception) -> None:
        with self._lock:
            self._dropped = {**self._dropped, name: str(error)}
            self._made.pop(name, None)
            self._for_all = None
        warnings.warn(f"running without the {name} backend: {error}", FallbackWarning, stacklevel=4)

    def _runner(self, name: str) -> Runner:
        runner = self._made.get(name)
        if runner is None:
            make = self._candidates.get(name, Eager)
            with self._lock:
                runner = self._made.get(name)
                if runner is None:
                    runner = self._made[name] = make(self._program)
        return runner

    def _compile_ahead(self, batch_sizes: Sequence[int], monitor: bool) -> None:
        """Let our kernels be compiled for all sizes at once that no earlier process has chosen for."""
        able = hasattr(self._candidates[self._first], "compile_ahead") and self._first not in self._dropped
        new = [size for size in batch_sizes if self._memory is None or self._memory.get(size) is None]
        if able and new:
            try:
                self._runner(self._first).compile_ahead(new, monitor)  # type: ignore[attr-defined]
            except _UNABLE as error:  # it cannot be made at all
                self._drop(self._first, error)

    def _remembered(self, size: int, monitor: bool) -> Choice | None:
        """What an earlier process chose, if it still runs."""
        choice = self._memory.get(size) if self._memory is not None else None
        if choice is None or choice.name not in self._candidates:
            return None
        if monitor and choice.name != self._first:
            self._warmed(self._first, size, monitor)
        return None if self._warmed(choice.name, size, monitor and choice.name == self._first) is None else choice

    def _measured(self, size: int, call: Call, monitor: bool) -> Choice:
        """The fastest of those that run; kept for later processes if all do: one may have failed only here and now."""
        running = {}
        for name in self._candidates:
            runner = self._warmed(name, size, monitor and name == self._first)
            if runner is not None:
                running[name] = runner
        if len(running) < 2:
            return Choice(next(iter(running), "eager"), {})
        choice = self._measure(running, call)
        if self._memory is not None and not self._dropped:
            self._memory.put(size, choice)
        return choice

    def _measure(self, runners: Mapping[str, Runner], call: Call) -> Choice:
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
                once = partial(_finished, partial(runners[name], *call.args, **call.kwargs), self._device)
                once()  # the other's threads have gone to sleep by its end
                taken[name].extend(burst(once, SECONDS, self.clock))
                medians[name] = median(taken[name])
        return Choice(min(close, key=medians.__getitem__), medians)


def able(device: torch.device, dtype: torch.dtype) -> dict[str, type[Runner]]:
    """The candidates that can run on ``device`` in ``dtype``: what is not installed is none."""
    candidates = _candidates_on(device)
    return {name: made for name, made in candidates.items() if made.unavailable(device, dtype) is None}


def _candidates_on(device: torch.device) -> Mapping[str, type[Runner]]:
    return CANDIDATES["cuda" if device.type == "cuda" else "cpu"]


def _finished(call: Callable[[], Any], device: torch.device) -> None:
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _kind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
    return key_of([leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])
