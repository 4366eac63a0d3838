"""Timing ways of doing the same thing side by side, each in a process of its own, a burst of calls in turn.

The thread pools of torch and ONNX Runtime disturb each other within one process, and a machine's clock drifts; so every
contender lives in a process of its own, all stay alive, and one after the other, in an order drawn anew each round,
times a short burst while the others wait on a pipe.
"""

import itertools
import math
import multiprocessing
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

Call = Callable[[], object]
"""One call, finished when it returns: on a GPU it ends by synchronising."""
Builder = Callable[[], Mapping[str, Call]]
"""Runs in the contender's process: makes what is timed, by the name of the case. A picklable function."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call over all bursts.

    Attributes:
        median, p20, p80: in seconds, p20 and p80 the 20th and 80th percentile.
        calls: how many were timed.
        peak_mib: the most memory its process (of several the largest) had held, in MiB, after the case's first call: of
            this case, where those before it need less. NaN where the system does not tell.
    """

    median: float
    p20: float
    p80: float
    calls: int
    peak_mib: float = math.nan

    @classmethod
    def of(cls, seconds: Sequence[float], peak_mib: float = math.nan) -> "Timing":
        """The spread of ``seconds``, of which there must be at least one."""
        ordered = sorted(seconds)
        if not ordered:
            raise ValueError("no calls were timed; expected at least one")

        def quantile(q: float) -> float:
            return ordered[min(len(ordered) - 1, math.floor(q * len(ordered)))]

        return cls(quantile(0.5), quantile(0.2), quantile(0.8), len(ordered), peak_mib)


@dataclass(frozen=True)
class Failure:
    """Why a contender could not be timed, in one line."""

    reason: str


def burst(call: Call, seconds: float, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """The seconds of each call, for about ``seconds``; at least one call."""
    taken: list[float] = []
    start = before = clock()
    while not taken or before - start < seconds:
        call()
        after = clock()
        taken.append(after - before)
        before = after
    return taken


def interleaved(
    contenders: Mapping[str, Builder],
    *,
    rounds: int = 5,
    seconds: float = 0.5,
    restarts: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Timing] | Failure]:
    """Time every case of every contender, interleaved.

    Args:
        contenders: by name, what builds it in its own process.
        rounds: how many bursts of each case, in every process.
        seconds: the length of a burst.
        restarts: how often all processes end and every contender is built anew in a fresh one. A process draws its
            memory layout once, which moves everything timed in it by several percent; calls of all its processes are
            pooled, so that percentiles are over processes too.
        seed: of the order within a round.
        progress: called with (done, total) as contenders are built and rounds end.

    Returns:
        By contender the timing of each of its cases, or why there is none: one failure, in any of its processes, is
        enough.
    """
    found = {name: _Found() for name in contenders}
    done, total = itertools.count(1), (1 + restarts) * (len(contenders) + rounds)
    shuffle = random.Random(seed).shuffle

    def step() -> None:
        if progress is not None:
            progress(next(done), total)

    for _ in range(1 + restarts):
        with ExitStack() as stack:
            workers: dict[str, _Worker] = {}
            for name, builder in contenders.items():
                if found[name].failure is None:
                    workers[name] = stack.enter_context(_Worker(builder))
                    found[name].built(workers[name].ask(None))
                step()
            order = [(name, case) for name in workers for case in found[name].peaks]
            for _ in range(rounds):
                shuffle(order)
                for name, case in order:
                    if found[name].failure is None:
                        found[name].timed(case, workers[name].ask((case, seconds)))
                step()
    return {name: contender.result() for name, contender in found.items()}


@dataclass
class _Found:
    """What is known of a contender so far, over all its processes."""

    samples: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    failure: Failure | None = None

    def built(self, answer: Mapping[str, float] | Failure) -> None:
        """Its cases, with the memory each took."""
        if isinstance(answer, Failure):
            self.failure = answer
        else:
            self.peaks = {case: max(peak, self.peaks.get(case, peak)) for case, peak in answer.items()}

    def timed(self, case: str, answer: list[float] | Failure) -> None:
        """The calls of one burst."""
        if isinstance(answer, Failure):
            self.failure = answer
        else:
            self.samples.setdefault(case, []).extend(answer)

    def result(self) -> dict[str, Timing] | Failure:
        """The timing of each case, or why there is none."""
        return self.failure or {case: Timing.of(taken, self.peaks[case]) for case, taken in self.samples.items()}


class _Worker:
    """A contender's process and the pipe to it; ends with the ``with`` block."""

    def __init__(self, builder: Builder) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, builder), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def ask(self, question: tuple[str, float] | None) -> Any:
        try:
            self._connection.send(question)
            return self._connection.recv()
        except (EOFError, OSError):
            self._process.join(timeout=5)
            return Failure(f"its process ended with status {self._process.exitcode}")


def _serve(connection: Connection, builder: Builder) -> None:
    """The contender's process: build when first asked, then time what is asked for until the pipe closes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cases: Mapping[str, Call] = {}
    for asked in itertools.count():
        try:
            question = connection.recv()
        except EOFError:
            return
        try:
            if asked == 0:
                cases = builder()
                answer: Any = {name: _first(call) for name, call in cases.items()}
            else:
                case, seconds = question
                answer = burst(cases[case], seconds)
        except Exception as error:  # noqa: BLE001 - told to the parent, which goes on with the others
            answer = Failure(f"{type(error).__name__}: {' '.join(str(error).split())}")
        connection.send(answer)


def _end_with_parent() -> None:
    """End at once when the parent was killed, in the middle of a build too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _first(call: Call) -> float:
    """Call once, since the first call of many things is not like the others; the process's peak memory in MiB."""
    call()
    if sys.platform != "linux":
        return math.nan
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
