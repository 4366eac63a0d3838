"""What a backend must be able to do."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from unit_fast.runtime.explain import SiteNote
from unit_fast.runtime.program import Program


class Runner(Protocol):
    """Runs one :class:`Program`; made when it is first needed, and made anew when the weights have changed.

    Calls come with floating tensors already in the program's dtype, from several threads at once.
    """

    def __init__(self, program: Program) -> None: ...

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot run on ``device`` in ``dtype``, and what to do; None when it can."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""

    def monitor(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """What the model returns, and (N, sites): how many activations lie above their bound."""

    def warmup(self, batch_sizes: Sequence[int], monitor: bool = False) -> None:
        """Do now, for these batch sizes, what the first call (and that of ``monitor``) would have to do."""

    def explain(self) -> Sequence[SiteNote]:
        """What runs each site, and why."""


class Inspector(Runner, Protocol):
    """A runner that also looks for the largest excess over each bound."""

    def inspect(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor, Tensor]:
        """What ``monitor`` returns, and (N, sites): how far the activation furthest above its bound lies above it."""

    def warm_inspect(self, batch_sizes: Sequence[int]) -> None:
        """Do now, for these batch sizes, what the first call of ``inspect`` would have to do."""
