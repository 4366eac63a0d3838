"""Which samples a step sees: endless shuffled passes over the fit set, a function of seed and step alone."""

import torch
from torch import Tensor


class MiniBatches:
    """Samples without replacement, pass after pass; any step can be asked for, so a search resumes where it stopped.

    Args:
        indices: (F,) what to draw from.
        batch_size: samples a step, at most F are taken.
        seed: of the order; every pass has its own.
    """

    def __init__(self, indices: Tensor, batch_size: int, seed: int) -> None:
        self._indices = indices
        self.batch_size = min(batch_size, len(indices))
        self._seed = seed

    def at(self, step: int) -> Tensor:
        """Indices (batch_size,) of step 0, 1, 2, …"""
        count = len(self._indices)
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        passes = [self._order(number) for number in range(start // count, (stop - 1) // count + 1)]
        offset = start % count
        return torch.cat(passes)[offset : offset + self.batch_size]

    def _order(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        return self._indices[torch.randperm(len(self._indices), generator=generator)]
