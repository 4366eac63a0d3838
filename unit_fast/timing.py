"""Timing ways of doing the same thing side by side, each in a process of its own, a burst of calls in turn.

The thread pools of torch and ONNX Runtime disturb each other within one process, and a machine's clock drifts; so every
contender lives in a process of its own, all stay alive, and one after the other, in an order drawn anew each round,
times a short burst while the others wait on a pipe.
"""

import itertools
import math
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
        peak_mib: the most memory its process had held, in MiB, after the case's first call: of this case, where those
            before it need less. NaN where the system does not tell.
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
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Timing] | Failure]:
    """Time every case of every contender, interleaved.

    Args:
        contenders: by name, what builds it in its own process.
        rounds: how many bursts of each case.
        seconds: the length of a burst.
        seed: of the order within a round.
        progress: called with (done, total) as contenders are built and rounds end.

    Returns:
        By contender the timing of each of its cases, or why there is none.
    """
    context = multiprocessing.get_context("spawn")
    results: dict[str, dict[str, Timing] | Failure] = {}
    workers: dict[str, _Worker] = {}
    done, total = itertools.count(1), len(contenders) + rounds
    with ExitStack() as stack:
        for name, builder in contenders.items():
            worker = stack.enter_context(_Worker(context, builder))
            built = worker.ask(None)
            if isinstance(built, Failure):
                results[name] = built
            else:
                workers[name], worker.cases = worker, built
            if progress is not None:
                progress(next(done), total)
        samples: dict[tuple[str, str], list[float]] = {}
        order = [(name, case) for name, worker in workers.items() for case in worker.cases]
        shuffle = random.Random(seed).shuffle
        for _ in range(rounds):
            shuffle(order)
            for name, case in order:
                if name in results:
                    continue
                taken = workers[name].ask((case, seconds))
                if isinstance(taken, Failure):
                    results[name] = taken
                else:
                    samples.setdefault((name, case), []).extend(taken)
            if progress is not None:
                progress(next(done), total)
    for name, worker in workers.items():
        if name not in results:
            results[name] = {case: Timing.of(samples[name, case], peak) for case, peak in worker.cases.items()}
    return {name: results[name] for name in contenders}


class _Worker:
    """A contender's process and the pipe to it; ends with the ``with`` block."""

    def __init__(self, context: Any, builder: Builder) -> None:
        self.cases: Mapping[str, float] = {}
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


def _first(call: Call) -> float:
    """Call once, since the first call of many things is not like the others; the process's peak memory in MiB."""
    call()
    if sys.platform != "linux":
        return math.nan
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
