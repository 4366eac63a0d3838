"""Candidates, a clock and an environment that a test makes up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from unit_fast.kernels.dispatch.candidates import Candidate, Provider
from unit_fast.kernels.dispatch.dispatcher import Dispatcher
from unit_fast.kernels.dispatch.environment import Environment
from unit_fast.kernels.dispatch.problem import Problem
from unit_fast.kernels.dispatch.store import Store
from unit_fast.kernels.reference import epilogue_ref

CPU = torch.device("cpu")
H200 = Environment("NVIDIA H200", "580.1", "2.11 cuda 13.0", "3.6.0", "abc", capability=90, programs=132)
A100 = Environment("NVIDIA A100", "580.1", "2.11 cuda 13.0", "3.6.0", "abc", capability=80, programs=108)

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
BOUND = torch.tensor([0.1, 0.2, 0.3, 0.4])
CALL = (X, None, None, None, BOUND)
TIMES = {"triton a": 7.0, "triton b": 5.0, "lib + epilogue": 6.0, "reference": 20.0}


class Way:
    """A candidate for ``epilogue`` that counts its calls; ``wrong`` is added to its results."""

    def __init__(self, name: str, provider: Provider = "triton", wrong: float | Exception = 0.0) -> None:
        self.wrong = wrong
        self.calls = 0
        self.candidate = Candidate(name, provider, self)

    def __call__(self, *args: object, counts: Tensor | None = None) -> Tensor:  # noqa: ARG002 - the launchers'
        self.calls += 1
        if isinstance(self.wrong, Exception):
            raise self.wrong
        return epilogue_ref(*args) + self.wrong


class FakeClock:
    """Says what it was told, and lists whom it timed."""

    def __init__(self, microseconds: Mapping[str, float]) -> None:
        self._microseconds = microseconds
        self.timed: list[str] = []
        self.released = 0

    def __call__(self, name: str, run: Callable[[], Tensor]) -> float:
        self.timed.append(name)
        run()
        return self._microseconds[name]

    def release(self) -> None:
        self.released += 1


def dispatcher(
    ways: list[Way],
    folder: Path,
    clock: FakeClock | None = None,
    policy: str = "auto",
    capturing: Callable[[], bool] = lambda: False,
    tables: Path | None = None,
) -> Dispatcher:
    """A dispatcher on the CPU with these candidates for every problem."""
    store = Store(H200, folder, tables if tables is not None else folder / "no tables")

    def candidates(problem: Problem, environment: Environment) -> list[Candidate]:  # noqa: ARG001 - the protocol's
        return [way.candidate for way in ways]

    return Dispatcher(H200, CPU, store, clock, policy, candidates, capturing)  # type: ignore[arg-type]


def some_ways() -> list[Way]:
    """Two fused kernels, the library's way and the reference."""
    return [Way("triton a"), Way("triton b"), Way("lib + epilogue", "library"), Way("reference", "reference")]
