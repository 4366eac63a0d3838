"""Compiles what part "values" launches, where there is no GPU.

    python -m benchmarks.gpu.compiled --target 90                # every case in every dtype: minutes
    python -m benchmarks.gpu.compiled --target 90 --dtypes fp16

What only the interpreter has seen may be refused by the compiler, and takes more shared memory than there is without
anybody noticing. Ends with 1 where a case does, and names those that spill registers, which is slow but right.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.pool import run_tasks
from benchmarks.gpu.value_cases import ITEM_SIZE, ValueCase, value_cases

TASK_SECONDS = 120.0


class Task(NamedTuple):
    """A case, and the compute capability to compile it for."""

    case: ValueCase
    target: int


def compile_launches(task: Task) -> dict[str, int]:
    """Bytes of spills a thread, by the name of each kernel that the case launches.

    Raises:
        Exception: whatever the compiler says.
        RuntimeError: a kernel needs more shared memory than a program can have, or nothing was launched.
    """
    from benchmarks.gpu.values import launched, multiply_as, operands_of
    from unit_fast.kernels.compiling import compiling_for
    from unit_fast.kernels.inspection import SHARED, figures_of

    multiply_as(task.case.dtype)
    torch.set_num_threads(1)
    with compiling_for(task.target) as compilations:
        launched(task.case, operands_of(task.case, "cpu"))
    if not compilations:
        raise RuntimeError("no kernel is launched")
    spills: dict[str, int] = {}
    for compilation in compilations:
        figures = figures_of(compilation)
        if figures.shared > SHARED[task.target]:
            raise RuntimeError(f"{compilation.kernel} takes {figures.shared} bytes of shared memory")
        spills[compilation.kernel] = figures.spills
    return spills


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile the cases; returns 0, or 1 where one cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=int, choices=(80, 90, 100), default=90, help="compute capability × 10")
    parser.add_argument("--dtypes", nargs="+", choices=sorted(ITEM_SIZE), default=list(ITEM_SIZE))
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only one case of so many")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=3600.0, help="what is not compiled by then has failed")
    options = parser.parse_args(arguments)
    cases = value_cases(options.target, tuple(options.dtypes))[:: options.every]
    tasks = [Task(case, options.target) for case in cases]
    limits: dict[str, Any] = {"task_seconds": TASK_SECONDS, "deadline": time.monotonic() + options.seconds}
    # A process keeps its line of tasks: to import torch takes longer than to compile one.
    line_of = {task: place % options.processes for place, task in enumerate(tasks)}.__getitem__
    outcomes = list(
        run_tasks(
            "benchmarks.gpu.compiled:compile_launches", tasks, workers=options.processes, line_of=line_of, **limits
        )
    )
    for outcome in outcomes:
        if outcome.failure:
            print(f"{outcome.task.case.name}: {outcome.failure}")
        for kernel, spilled in (outcome.result or {}).items():
            if spilled:
                print(f"{outcome.task.case.name}: {kernel} spills {spilled} bytes a thread")
    compiled = sum(not outcome.failure for outcome in outcomes)
    print(f"{compiled} of {len(tasks)} cases compile for sm_{options.target}")
    return int(compiled < len(tasks))


if __name__ == "__main__":
    sys.exit(main())
