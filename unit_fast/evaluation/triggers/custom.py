"""Any function as a trigger."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from unit_fast.errors import DataError


@dataclass(frozen=True)
class Custom:
    """A function of the batch, for attacks that are not here and for data that is not images.

    The function gets a copy, so it may write to it; shapes and ranges of what it gets are not checked.

    Args:
        fn: takes the batch and returns it triggered, in the same shape.

    Raises:
        DataError: when called, the function returns anything but a tensor of the same shape.
    """

    fn: Callable[[Tensor], Tensor]

    def __call__(self, batch: Tensor) -> Tensor:
        """Return the triggered batch; ``batch`` itself stays as it is."""
        triggered = self.fn(batch.clone())
        if not isinstance(triggered, Tensor) or triggered.shape != batch.shape:
            found = tuple(triggered.shape) if isinstance(triggered, Tensor) else type(triggered).__name__
            raise DataError(
                f"{self}: the function must return a tensor of shape {tuple(batch.shape)}, returned {found}"
            )
        return triggered

    def __str__(self) -> str:
        """Where the function comes from."""
        name = getattr(self.fn, "__qualname__", type(self.fn).__qualname__)
        return f"custom:{getattr(self.fn, '__module__', '?')}:{name}"
