"""Where the kernel tests run, on what data, and how closely a kernel must agree with its reference."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

# Triton decides between compiling and interpreting when a kernel is decorated: this precedes every import of one.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

TOLERANCE = {  # against float64, with operands of unit variance and sums scaled to it
    torch.float32: 2e-6,
    torch.float16: 1.2e-3,  # one rounding is 4.9e-4 at 1
    torch.bfloat16: 9e-3,
}


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU if there is one; else the CPU, where Triton's interpreter runs the kernels."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    """New tensors start as NaN, so an element that a kernel never writes shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def randn(device: torch.device) -> Callable[..., Tensor]:
    """``randn(shape, dtype, seed, scale)``: normal values, exactly representable in ``dtype``, on the test's device."""

    def draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return (values * scale).to(dtype).to(device)

    return draw


@pytest.fixture(scope="session")
def agree() -> Callable[..., None]:
    """``agree(actual, reference, *args)``: ``actual`` is what ``reference`` gives for ``args`` in float64."""

    def check(actual: Tensor, reference: Callable[..., Tensor], *args: object) -> None:
        exact = reference(*(a.double() if isinstance(a, Tensor) else a for a in args))
        assert actual.shape == exact.shape
        tolerance = TOLERANCE[actual.dtype]
        torch.testing.assert_close(actual.double(), exact, rtol=tolerance, atol=tolerance, equal_nan=True)

    return check
