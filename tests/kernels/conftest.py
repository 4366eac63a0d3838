"""Where the kernel tests run, on what data, and how closely a kernel must agree with its reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from unit_fast.kernels.agreement import error, tolerance_of


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


@pytest.fixture(autouse=True)
def _full_float32() -> Iterator[None]:
    """torch lets cuDNN, and so our convolutions, multiply float32 as TF32 unless told otherwise."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


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
        assert error(actual, exact) <= tolerance_of(actual.dtype, "tf32x3" if actual.is_cuda else "ieee")

    return check


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType, str], list[tuple[Tensor, dict[str, Any]]]]:
    """``launches(module, kernel)``: what a kernel is launched on from now on, its first argument and its options."""

    def watch(module: ModuleType, name: str) -> list[tuple[Tensor, dict[str, Any]]]:
        kernel, seen = getattr(module, name), []

        class Watched:
            def __getitem__(self, grid: object) -> Callable[..., object]:
                return lambda x, *rest, **options: seen.append((x, options)) or kernel[grid](x, *rest, **options)

        monkeypatch.setattr(module, name, Watched())
        return seen

    return watch


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors are taken for CUDA tensors: kernels run in the interpreter."""
    pytest.importorskip("triton", reason="the kernels need Triton")
    if torch.cuda.is_available():
        pytest.skip("with a GPU there is no interpreter to run kernels on the CPU")
    from unit_fast.kernels import ops

    monkeypatch.setattr(ops, "_runs_kernels", lambda x: x.dtype in ops.KERNEL_DTYPES)
