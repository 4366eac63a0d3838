"""What the parts of benchmarks.gpu leave behind in a process."""

from collections.abc import Iterator

import pytest
import torch


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
