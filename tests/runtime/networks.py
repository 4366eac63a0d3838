"""Small networks with bounds that bind, and how they are called."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unit_fast.bounds import Bounds, bound_shape
from unit_fast.capture import Example, capture
from unit_fast.sites import find_sites

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


def images(count: int, size: int = 8, seed: int | None = None) -> Tensor:
    """(count, 3, size, size), the same for the same seed."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count if seed is None else seed))


def bounds_of(model: nn.Module, example: Example, granularity: str = "neuron", most: float = 0.6) -> Bounds:
    """Random bounds in [0, most]."""
    captured = capture(model, example)
    sites = find_sites(captured)
    generator = torch.Generator().manual_seed(5)
    tensors = {site.name: most * torch.rand(bound_shape(site, granularity), generator=generator) for site in sites}
    return Bounds(tensors, sites, granularity, captured.meta["fingerprint"])


class OneConv(nn.Module):
    """conv, ReLU, mean, linear: (N, 3, 8, 8) to (N, 5). As little to compile as there can be."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


class Nested(nn.Module):
    """Two inputs, one optional and named, one number; a nested output: what call structures look like."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(4, 6)

    def forward(self, pair: tuple[Tensor, Tensor], scale: float = 1.0, *, mask: Tensor | None = None) -> dict:
        a, b = F.relu(self.first(pair[0])), F.relu(self.second(pair[1]))
        both = a + scale * b
        if mask is not None:
            both = both * mask
        return {"sum": both, "parts": [a, (b, None)]}


class Windows(nn.Module):
    """A network over the 4 windows of a sample as if each was a sample, as windowed attention is written.

    (N, 3, 8, 8) to (N, 5). The first dimension of the second of its three sites is 4·N.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.Linear(4, 6)
        self.outer = nn.Linear(24, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = F.relu(self.conv(x)).reshape(-1, 4, 2, 4, 2, 4)  # N, C, window row, y, window column, x
        windows = maps.permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 4)  # (4·N, positions, C)
        inner = F.relu(self.inner(windows)).mean(1)
        return self.head(F.relu(self.outer(inner.reshape(-1, 24))))


class Steps(nn.Module):
    """A layer over all steps of a batch at once, steps in front: (N, 3, 8, 8), 8 steps of 24, to (N, 6).

    The first dimension of its site is 8·N, and the rows of a sample do not lie together.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.permute(2, 0, 1, 3).reshape(-1, 24)
        return F.relu(self.inner(steps)).reshape(8, -1, 6).mean(0)
