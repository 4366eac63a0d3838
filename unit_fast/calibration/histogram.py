"""A histogram whose range grows with the data: one pass, equal bins, never counted twice."""

import torch
from torch import Tensor

BINS = 128


class GrowingHistogram:
    """Counts in :data:`BINS` equal bins. When a value lies beyond, the range doubles and bins are joined by pairs.

    So a range is at most twice as wide as it need be, and every count stays exact but for values on a bin's edge.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(BINS, dtype=torch.int64)
        self._low = 0.0
        self._span = 0.0

    def update(self, values: Tensor, minimum: float, maximum: float) -> None:
        """Count ``values`` (any shape, finite), which lie in ``minimum`` … ``maximum``, as the range then does."""
        if not self._span:
            self._low = min(0.0, minimum)
            # Wide enough to be told apart in float32, the dtype that values are binned in.
            self._span = max(maximum - self._low, 1e-4 * max(abs(minimum), abs(maximum)), 1e-6)
        while maximum > self._low + self._span:
            self._counts = torch.cat([_pairs(self._counts), torch.zeros(BINS // 2, dtype=torch.int64)])
            self._span *= 2
        while minimum < self._low:
            self._counts = torch.cat([torch.zeros(BINS // 2, dtype=torch.int64), _pairs(self._counts)])
            self._low -= self._span
            self._span *= 2
        inside = values.detach().float().clamp(self._low, self._low + self._span)
        self._counts += torch.histc(inside, BINS, self._low, self._low + self._span).to("cpu", torch.int64)

    @property
    def counts(self) -> Tensor:
        """(bins,) int64 on the CPU, from the first bin that holds something to the last; at most :data:`BINS`."""
        return self._counts[self._occupied()].clone()

    @property
    def edges(self) -> Tensor:
        """(bins + 1,) float32 on the CPU."""
        occupied = self._occupied()
        edges = torch.linspace(self._low, self._low + self._span, BINS + 1)
        return edges[occupied.start : occupied.stop + 1].clone()

    def _occupied(self) -> slice:
        bins = self._counts.nonzero().flatten().tolist()
        return slice(bins[0], bins[-1] + 1) if bins else slice(0, BINS)


def _pairs(counts: Tensor) -> Tensor:
    return counts.reshape(-1, 2).sum(1)
