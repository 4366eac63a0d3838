"""The choice among candidates, and the call.

A call whose problem is known costs one dictionary lookup. One that is not takes, in this order: what was measured here
before (the user's cache), the table that ships for the GPU (verified on this machine first), and, within ``tuning()``,
a measurement. Outside of it nothing is timed: the library's candidate, verified, serves until somebody measures. While
a CUDA graph is captured nothing is even verified, and what was never run before is computed by the reference.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from unit_fast.kernels.dispatch.ahead import Launch, compile_ahead, processes_from_environment
from unit_fast.kernels.dispatch.candidates import Candidate, candidates_for
from unit_fast.kernels.dispatch.clock import Clock, CudaGraphClock
from unit_fast.kernels.dispatch.environment import Environment, environment_of
from unit_fast.kernels.dispatch.problem import Operator, Problem, complete
from unit_fast.kernels.dispatch.store import DispatchWarning, Record, Store
from unit_fast.kernels.dispatch.verify import difference, expected, random_operands

_logger = logging.getLogger(__name__)

Policy = Literal["auto", "triton", "cudnn", "library", "reference"]
VARIABLE = "UNIT_FAST_KERNELS"
"""Environment variable that restricts the candidates: "auto" (all), "triton", "cudnn", "library" or "reference"."""

MOST_SIGNATURES = 4096  # calls remembered by their operands' exact strides; more are looked up by problem

_tuning: ContextVar[bool] = ContextVar("unit_fast_tuning", default=False)


@contextmanager
def tuning() -> Iterator[None]:
    """Within it, on this thread, problems that were never measured are."""
    token = _tuning.set(True)
    try:
        yield
    finally:
        _tuning.reset(token)


@dataclass(frozen=True)
class Choice:
    """What runs a problem, and why.

    Attributes:
        candidate: what runs it.
        source: "measured" now, "cache" or "table" of an earlier measurement, "default" until one is made, "only" where
            there is no other.
        microseconds: of every candidate that was timed.
        dropped: why others were not.
    """

    candidate: Candidate
    source: Literal["measured", "cache", "table", "default", "only"]
    microseconds: Mapping[str, float] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)

    @property
    def why(self) -> str:
        """The reason, in a few words."""
        own = self.microseconds.get(self.candidate.name)
        if own is None:
            return {"default": "verified, not measured", "only": "nothing else can"}.get(self.source, self.source)
        others = {name: time for name, time in self.microseconds.items() if name != self.candidate.name}
        where = {"cache": "measured before", "table": "shipped table"}.get(self.source, "measured")
        if not others:
            return f"{where}: {own:.1f} µs, alone"
        name, time = min(others.items(), key=lambda item: item[1])
        return f"{where}: {own:.1f} µs, {name} {time:.1f} µs"


def policy_from_environment() -> Policy:
    """The value of UNIT_FAST_KERNELS, "auto" where it is not set.

    Raises:
        ValueError: it is none of the policies.
    """
    value = os.environ.get(VARIABLE) or "auto"
    if value not in get_args(Policy):
        raise ValueError(f"unit_fast.kernels: {VARIABLE} is {value!r}; expected one of {', '.join(get_args(Policy))}")
    return value  # type: ignore[return-value]


class Dispatcher:
    """Chooses and runs, for one device.

    Args:
        environment: where it runs.
        device: the device operands for verification are made on.
        store: earlier measurements.
        clock: times candidates; without one nothing is ever measured.
        policy: which providers may run; "auto" is all of them.
        candidates: who can compute a problem.
        capturing: whether a CUDA graph is being captured right now.
        compile_launches: compiles for launches that are about to be made; without it each is when it is made.
    """

    def __init__(
        self,
        environment: Environment,
        device: torch.device,
        store: Store,
        clock: Clock | None,
        policy: Policy = "auto",
        candidates: Callable[[Problem, Environment], Sequence[Candidate]] = candidates_for,
        capturing: Callable[[], bool] = lambda: False,
        compile_launches: Callable[[Sequence[Launch], Environment], None] | None = None,
    ) -> None:
        self.environment = environment
        self.policy = policy
        self._device = device
        self._store = store
        self._clock = clock
        self._candidates = candidates
        self._capturing = capturing
        self._compile = compile_launches
        self._lock = threading.RLock()
        self._by_signature: dict[Any, Choice] = {}
        self._by_problem: dict[Problem, Choice] = {}
        self._ahead: set[Launch] = set()

    def run(self, operator: Operator, args: Sequence[Any], counts: Tensor | None = None) -> Tensor:
        """Compute a call.

        Args:
            operator: which.
            args: in the order of its schema; trailing defaults may be left out.
            counts: (N,) int32, increased by each sample's number of values above their bound.

        Raises:
            TypeError, ValueError: the arguments do not fit (``kernels.checks``).
        """
        args = complete(operator, args)
        return self._choice(operator, args).candidate.call(*args, counts=counts)

    def choose(self, operator: Operator, args: Sequence[Any]) -> Choice:
        """What runs such a call; measured if need be within ``tuning()``."""
        return self._choice(operator, complete(operator, args))

    def compile_ahead(self, problems: Iterable[Problem]) -> None:
        """Compile, side by side, our kernels that ``choose`` would try one by one for these within ``tuning()``."""
        if self._clock is None or self._compile is None:
            return
        with self._lock:
            launches = [
                (problem, candidate.name)
                for problem in dict.fromkeys(problems)
                for candidate in self._untried(problem)
                if candidate.provider == "triton" and (problem, candidate.name) not in self._ahead
            ]
            self._ahead.update(launches)
        self._compile(launches, self.environment)

    def describe(self) -> dict[str, str]:
        """Where choices come from on this device, in words."""
        measured, shipped = len(self._store.records()), self._store.shipped_count()
        table = f"{shipped} problems" if shipped else f"none for {self.environment.device}"
        return {
            "candidates": f"{self.policy} ({VARIABLE} restricts them)",
            "measured here": f"{measured} problems, in {self._store.path}",
            "shipped table": table,
        }

    def release(self) -> None:
        """Let go of the memory that measuring took; to be called when a warm-up is over."""
        if self._clock is not None:
            with self._lock:
                self._clock.release()

    def _choice(self, operator: Operator, args: tuple[Any, ...]) -> Choice:
        signature = _signature(operator, args)
        choice = self._by_signature.get(signature)
        if choice is not None and not self._improvable(choice):
            return choice
        problem = Problem.of(operator, args)
        if self._capturing():
            # Its kernel may not be compiled or loaded yet, which a capture does not survive.
            return choice or Choice(self._candidates(problem, self.environment)[-1], "only")
        with self._lock:
            choice = self._by_problem.get(problem)
            if choice is None or self._improvable(choice):
                with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
                    choice = self._decide(problem)
                self._by_problem[problem] = choice
            if len(self._by_signature) >= MOST_SIGNATURES:
                self._by_signature.clear()
            self._by_signature[signature] = choice
        return choice

    def _improvable(self, choice: Choice) -> bool:
        return choice.source == "default" and self._clock is not None and _tuning.get()

    def _untried(self, problem: Problem) -> Sequence[Candidate]:
        """Those that a decision within ``tuning()`` would launch and that no earlier one has."""
        choice = self._by_problem.get(problem)
        if choice is not None and choice.source != "default":
            return []
        candidates, key = self._allowed(problem), self._key(problem)
        names = [candidate.name for candidate in candidates]
        measured, shipped = self._store.get(key), self._store.shipped(key)
        if measured is not None and measured.candidate in names:
            return []
        if shipped is not None and shipped.candidate in names:
            return [one for one in candidates if one.name == shipped.candidate]
        return candidates

    def _key(self, problem: Problem) -> str:
        return problem.key if self.policy == "auto" else f"{self.policy} only: {problem.key}"

    def _decide(self, problem: Problem) -> Choice:
        candidates = self._allowed(problem)
        if len(candidates) == 1 and candidates[0].provider == "reference":
            return Choice(candidates[0], "only")
        by_name = {candidate.name: candidate for candidate in candidates}
        key = self._key(problem)
        record = self._store.get(key)
        if record is not None and record.candidate in by_name:
            return Choice(by_name[record.candidate], "cache", record.microseconds, record.dropped)
        trial = _Trial(problem, self._device)
        record = self._store.shipped(key)
        if record is not None and record.candidate in by_name and trial.passes(by_name[record.candidate]):
            return Choice(by_name[record.candidate], "table", record.microseconds, trial.dropped)
        if self._clock is not None and _tuning.get():
            return self._measured(candidates, trial, key, self._clock)
        # The library's candidate is the safe one: its kernels have served everybody, and one short pass is ours.
        for candidate in sorted(candidates, key=lambda c: c.provider != "library"):
            if trial.passes(candidate):
                return Choice(candidate, "default", dropped=trial.dropped)
        raise AssertionError("the reference agrees with itself")

    def _allowed(self, problem: Problem) -> Sequence[Candidate]:
        candidates = self._candidates(problem, self.environment)
        if self.policy == "auto":
            return candidates
        allowed = [candidate for candidate in candidates if candidate.provider == self.policy]
        if not allowed:
            _logger.info("%s=%s: no such candidate for %s; the reference runs it", VARIABLE, self.policy, problem.key)
        # The reference stands by for what all others fail at.
        return [*allowed, candidates[-1]] if candidates[-1] not in allowed else allowed

    def _measured(self, candidates: Sequence[Candidate], trial: _Trial, key: str, clock: Clock) -> Choice:
        times: dict[str, float] = {}
        for candidate in candidates:
            if candidate.provider == "reference" and times and self.policy != "reference":
                continue  # several passes over memory: for need only
            if trial.passes(candidate):
                time = trial.time(candidate, clock)
                if time is not None:
                    times[candidate.name] = time
        by_name = {candidate.name: candidate for candidate in candidates}
        if not times:
            return Choice(candidates[-1], "default", dropped=trial.dropped)
        best = min(times, key=times.__getitem__)
        self._store.put(key, Record(best, times, trial.dropped))
        return Choice(by_name[best], "measured", times, trial.dropped)


class _Trial:
    """One problem's random operands, and what came of the candidates that were tried on them."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        self._problem = problem
        self._device = device
        self._operands: tuple[Any, ...] | None = None
        self._truth: Tensor | None = None
        self.dropped: dict[str, str] = {}

    def passes(self, candidate: Candidate) -> bool:
        """Whether it agrees with the reference; the reason is kept and warned of where it does not."""
        if candidate.provider == "reference" or candidate.name in self.dropped:
            return candidate.provider == "reference"
        reason: str | None = self._attempt(candidate, lambda: difference(self._problem, candidate, *self._posed()))
        if reason is not None:
            self._drop(candidate, f"it differs from the reference: {reason}")
        return candidate.name not in self.dropped

    def time(self, candidate: Candidate, clock: Clock) -> float | None:
        """Microseconds; None where it cannot be timed."""
        operands, _ = self._posed()
        time: float | None = self._attempt(candidate, lambda: clock(candidate.name, lambda: candidate.call(*operands)))
        return time

    def _posed(self) -> tuple[tuple[Any, ...], Tensor]:
        if self._operands is None or self._truth is None:
            self._operands = random_operands(self._problem, self._device)
            self._truth = expected(self._problem, self._operands)
        return self._operands, self._truth

    def _attempt(self, candidate: Candidate, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except ValueError as error:  # a launcher's: it is not made for this problem
            self.dropped[candidate.name] = f"it cannot: {error}"
            _logger.debug("%s cannot run %s: %s", candidate.name, self._problem.key, error)
        except Exception as error:  # noqa: BLE001 - compilers and drivers raise anything; it is said, and others serve
            self._drop(candidate, f"it fails with {type(error).__name__}: {_first_line(error)}")
        return None

    def _drop(self, candidate: Candidate, reason: str) -> None:
        self.dropped[candidate.name] = reason
        warnings.warn(
            f"unit_fast.kernels: {candidate.name} is not used for {self._problem.key}: {reason}",
            DispatchWarning,
            stacklevel=2,
        )


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")


def _signature(operator: Operator, args: tuple[Any, ...]) -> Any:
    """What tells calls apart, cheaply. How float32 is multiplied is missing: that is not changed between calls."""
    return operator, tuple(
        (a.shape, a.stride(), a.dtype, a.device, a.data_ptr() & 15) if isinstance(a, Tensor) else a for a in args
    )


@cache
def _made(device: torch.device) -> Dispatcher:
    environment = environment_of(device)
    on_gpu = device.type == "cuda"
    return Dispatcher(
        environment,
        device,
        Store(environment),
        CudaGraphClock(device) if on_gpu else None,
        policy_from_environment(),
        capturing=torch.cuda.is_current_stream_capturing if on_gpu else lambda: False,
        compile_launches=partial(compile_ahead, processes=processes_from_environment()),
    )


def dispatcher_for(device: torch.device) -> Dispatcher:
    """The dispatcher of ``device``, made when it is first asked for.

    Raises:
        ValueError: UNIT_FAST_KERNELS is none of the policies, or UNIT_FAST_COMPILE_PROCESSES no number of processes.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return _made(device)
