"""The kernels run in Triton's interpreter where there is no GPU; this precedes every import of one."""

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _settings_of_torch() -> Iterator[None]:
    """What parts set for a process of their own does not outlast a test."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [backend.fp32_precision for backend in backends]
    benchmark = torch.backends.cudnn.benchmark
    yield
    for backend, precision in zip(backends, before, strict=True):
        backend.fp32_precision = precision
    torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(False)
