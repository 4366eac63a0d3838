"""Where kernels are launched and what they are told of the device: that of the operands, whichever is current."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton")

from unit_fast.kernels import backward, conv2d, depthwise, implicit_gemm, launch, linear, pointwise

FAR = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 1))  # an operand on the second of two GPUs
Z = torch.zeros
LAUNCHES: dict[str, tuple[ModuleType, tuple[str, ...], Callable[[], Any]]] = {
    "epilogue": (pointwise, ("_epilogue_kernel",), lambda: pointwise.epilogue(Z(2, 3))),
    "linear": (linear, ("_linear_tma_kernel", "_linear_pointer_kernel"), lambda: linear.linear(Z(2, 4), Z(3, 4))),
    "conv2d": (
        implicit_gemm,
        ("_conv2d_tma_kernel", "_conv2d_kernel"),
        lambda: conv2d.conv2d(Z(1, 40, 5, 5), Z(3, 40, 3, 3)),
    ),
    "depthwise": (depthwise, ("_depthwise_kernel",), lambda: conv2d.conv2d(Z(1, 4, 5, 5), Z(4, 1, 3, 3), groups=4)),
    "backward": (
        backward,
        ("_chunk_kernel", "_sum_chunks_kernel"),
        lambda: backward.clamp_bound_backward(Z(2, 3), Z(2, 3), Z(3)),
    ),
}


@pytest.mark.parametrize(("module", "kernels", "call"), LAUNCHES.values(), ids=LAUNCHES)
def test_every_kernel_is_launched_on_its_operands_device(module, kernels, call, monkeypatch):
    inside, launched = [], []

    @contextmanager
    def device_of(x: torch.Tensor) -> Iterator[None]:
        inside.append(x.device)
        yield
        inside.pop()

    class Kernel:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *_, **__: launched.append(list(inside))

    monkeypatch.setattr(module, "on_device_of", device_of)
    for kernel in kernels:
        monkeypatch.setattr(module, kernel, Kernel())
    call()
    assert launched
    assert all(devices == [torch.device("cpu")] for devices in launched)


def test_the_operand_s_gpu_becomes_the_current_one(monkeypatch):
    entered = []

    @contextmanager
    def device(which: torch.device) -> Iterator[None]:
        entered.append(which)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    with launch.on_device_of(FAR):
        assert entered == [torch.device("cuda", 1)]
    with launch.on_device_of(torch.zeros(1)):
        assert len(entered) == 1


def test_a_mixed_machine_is_asked_about_the_operand_s_gpu(monkeypatch):
    """An A100 beside an H100: neither tiles nor programs may be those of the current device."""
    capabilities, processors = {0: (8, 0), 1: (9, 0)}, {0: 108, 1: 132}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(multi_processor_count=processors[device.index]),
    )
    near = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0))
    assert [launch.capability_of(x) for x in (near, FAR)] == [80, 90]
    assert [launch.streaming_multiprocessors(x) for x in (near, FAR)] == [108, 132]


@pytest.mark.parametrize("convolution", [False, True], ids=["matmul", "convolution"])
@pytest.mark.parametrize(("setting", "expected"), [("ieee", "tf32x3"), ("tf32", "tf32")])
def test_tf32_only_where_torch_allows_it(setting, expected, convolution):
    backend = torch.backends.cudnn.conv if convolution else torch.backends.cuda.matmul
    before = backend.fp32_precision
    backend.fp32_precision = setting
    try:
        assert launch.dot_precision(torch.zeros(1), convolution=convolution) == expected
        assert launch.dot_precision(torch.zeros(1).half(), convolution=convolution) == "tf32x3"
    finally:
        backend.fp32_precision = before


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        pytest.param(torch.zeros(4, 8).half(), True, id="rows_of_16_bytes"),
        pytest.param(torch.zeros(4, 12).half(), False, id="rows_of_24_bytes"),
        pytest.param(torch.zeros(4, 4), True, id="float32_rows_of_16_bytes"),
        pytest.param(torch.zeros(33)[1:].view(4, 8), False, id="starting_at_byte_4"),
    ],
)
def test_what_tma_can_address(matrix, expected):
    assert launch.tma_can_address(matrix) is expected
    assert launch.tma_can_address(torch.zeros(4, 8), matrix) is expected


@pytest.mark.parametrize(
    ("size", "dtype", "expected"),
    [
        (64, torch.float16, 8),
        (24, torch.float16, 8),
        (12, torch.float16, 4),
        (3, torch.float16, 1),
        (8, torch.float32, 4),
    ],
    ids=str,
)
def test_widest_access(size, dtype, expected):
    assert launch.vector_multiple(size, torch.zeros(1, dtype=dtype)) == expected
