"""Triton's interpreter on the emulated device: no copies, launches in graphs, tensors of the CPU refused."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch.utils._python_dispatch import _disable_current_modes
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

from tests.emulated_gpu.graphs import capturing

_one_at_a_time = threading.RLock()  # the interpreter keeps the place in the grid in a global


def install() -> None:
    """Change the interpreter."""
    launch = interpreter.GridExecutor.__call__
    dot = interpreter.InterpreterBuilder.create_dot

    def launched(self, *args, **options):
        def run() -> None:
            with _disable_current_modes(), _one_at_a_time:
                launch(self, *args, **options)

        graph = capturing()
        if graph is not None:
            graph.written(_operands(args, options))  # which of them it writes to, only the kernel knows
            graph.record(run)
        run()

    def multiplied(self, a, b, accumulator, precision, imprecise):
        return dot(self, _widened(a), _widened(b), accumulator, precision, imprecise)

    interpreter.GridExecutor.__call__ = launched
    interpreter.GridExecutor._init_args_hst = _checked
    interpreter.GridExecutor._restore_args_dev = lambda *_args: None
    interpreter.InterpreterBuilder.create_dot = multiplied


def _checked(self: Any, args: Any, options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:  # noqa: ARG001
    """What the interpreter works on: the operands as they are, where the interpreter would copy them to the host."""
    if not all(operand.is_cuda for operand in _operands(args, options)):
        raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
    return list(args), dict(options)


def _operands(args: Any, options: dict[str, Any]) -> list[torch.Tensor]:
    given = (arg.base if isinstance(arg, TensorDescriptor) else arg for arg in (*args, *options.values()))
    return [operand for operand in given if isinstance(operand, torch.Tensor)]


def _widened(operand: Any) -> Any:
    """bfloat16 as float32: numpy has none, and the interpreter would multiply the bits as integers."""
    if operand.dtype.scalar != tl.bfloat16:
        return operand
    return interpreter.TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
