"""Compiling what launchers launch, for a GPU that need not be there: nothing runs.

The interpreter shows that kernels compute the right thing, not that they compile: it takes what Triton's compiler
refuses. Here the launchers themselves are called, with operands on the CPU, and each launch ends once its machine code
is made. So what is compiled is what a GPU would be given, with every specialisation, and Triton keeps it in its cache,
where a process that does have the GPU finds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from unit_fast.kernels import launch


class Compilation(NamedTuple):
    """One launch that was not made.

    Attributes:
        kernel: the name of its function.
        ptx: what the compiler made of it.
        cubin: the machine code.
        shared: bytes of shared memory a program.
    """

    kernel: str
    ptx: str
    cubin: bytes
    shared: int


class _AbsentGpu:
    """In place of Triton's driver: tells for what to compile, and has no device to load anything on."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:
        return f"none of sm_{self._target.arch}"  # what Triton keeps compiled kernels by

    def get_current_stream(self, device: object) -> int:  # noqa: ARG002 - the protocol's
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def compiling_for(capability: int, programs: int = 132) -> Iterator[list[Compilation]]:
    """Within it launches on CPU tensors are compiled and not made. Changes Triton for the whole process.

    Args:
        capability: the compute capability, major·10 + minor.
        programs: multiprocessors of the GPU.

    Returns:
        What was compiled or found in Triton's cache, a line a launch, as it comes.

    Raises:
        RuntimeError: kernels are interpreted in this process, and interpreted kernels cannot be compiled.
    """
    from unit_fast.kernels.dispatch.environment import interpreting

    if interpreting():
        raise RuntimeError("nothing is compiled under TRITON_INTERPRET=1; compile in a process without it")
    run, found = JITFunction.run, list[Compilation]()

    def compiled(self: Any, *args: Any, **options: Any) -> Any:
        kernel = run(self, *args, **{**options, "warmup": True})
        found.append(Compilation(self.__name__, kernel.asm["ptx"], kernel.asm["cubin"], kernel.metadata.shared))
        return kernel

    before = launch.ABSENT
    driver.set_active(_AbsentGpu(GPUTarget("cuda", capability, 32)))
    JITFunction.run = compiled
    launch.ABSENT = launch.Gpu(capability, programs)
    try:
        yield found
    finally:
        launch.ABSENT = before
        JITFunction.run = run
        driver.set_active(None)  # looks for one when it is next needed
