"""How a model is called: arguments of a wanted batch size, made from the example."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from unit_fast.capture import Example, batch_size, call_arguments

# Rows of an example that are kept for warm-up and checks; more would only hold memory.
MOST_SAMPLES = 8


@dataclass(frozen=True)
class Call:
    """Positional and keyword arguments of one call, with the batch size they are of."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: int

    @classmethod
    def from_example(cls, example: Example) -> "Call":
        """The first samples of an example, copied."""
        args, kwargs = call_arguments(example)
        size = batch_size(args, kwargs)
        call = cls(args, kwargs, size)
        return call.map_batched(lambda rows: rows[:MOST_SAMPLES].detach().clone(), min(size, MOST_SAMPLES))

    def of_size(self, batch: int) -> "Call":
        """The same call with ``batch`` samples: the rows in turn, in new memory."""
        rows_of = torch.arange(batch) % self.batch
        return self.map_batched(lambda rows: rows[rows_of.to(rows.device)], batch)

    def tensors(self) -> list[Tensor]:
        """Its tensors, in order."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    def to(self, device: torch.device) -> "Call":
        """The same call with its tensors on ``device``."""
        return self.map_tensors(lambda tensor: tensor.to(device))

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "Call":
        """The same call with ``function`` over every tensor."""
        args, kwargs = pytree.tree_map_only(Tensor, function, (self.args, self.kwargs))
        return Call(args, kwargs, self.batch)

    def map_batched(self, function: Callable[[Tensor], Tensor], batch: int) -> "Call":
        """The same call with ``function`` over every tensor whose first dimension is the batch."""

        def change(leaf: Any) -> Any:
            batched = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == self.batch
            return function(leaf) if batched else leaf

        args, kwargs = pytree.tree_map(change, (self.args, self.kwargs))
        return Call(args, kwargs, batch)
