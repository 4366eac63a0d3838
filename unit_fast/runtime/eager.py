"""The "eager" backend: the sanitised graph, operator by operator."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unit_fast.runtime.explain import SiteNote
from unit_fast.runtime.program import Program


class Eager:
    """Runs the graph as it is: the reference, and the only backend that passes gradients."""

    def __init__(self, program: Program) -> None:
        self._program = program

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:  # noqa: ARG003 - the protocol's
        """None: it runs everywhere."""
        return None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output."""
        return self._program.module(*args, **kwargs)

    def monitor(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """The model's output, and the number of activations above their bound, (N, sites)."""
        output, counts = self._program.counting(*args, **kwargs)
        return output, counts

    def inspect(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor, Tensor]:
        """The model's output, the counts, and the largest excess over a bound, (N, sites) each."""
        output, counts, excess = self._program.inspecting(*args, **kwargs)
        return output, counts, excess

    def warmup(self, batch_sizes: Sequence[int], monitor: bool = False) -> None:
        """Nothing is there to prepare."""

    def warm_inspect(self, batch_sizes: Sequence[int]) -> None:
        """Nor here."""

    def explain(self) -> list[SiteNote]:
        """Every operator runs on its own."""
        return [SiteNote(site, "nothing", "torch, eagerly", "backend eager") for site in self._program.bounds]
