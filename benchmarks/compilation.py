"""How long the kernels compile that a first warm-up tries on a GPU, in one process and in several; no GPU is needed.

    python -m benchmarks.compilation                     # minutes: results/compilation.json

For an H200 or H100 without a table of choices, in half precision, a bound a neuron: all configurations that
``warmup([1, 32])`` would time, compiled by ``kernels.dispatch.ahead`` into an empty cache of Triton's, starting the
processes included. Nothing is launched, so what comparing and timing take on the GPU is not in it.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu.networks import sanitised_network
from benchmarks.results_file import RESULTS, write_results
from unit_fast.kernels.dispatch.ahead import Launch, compile_in_processes
from unit_fast.kernels.dispatch.candidates import candidates_for
from unit_fast.kernels.dispatch.dispatcher import Dispatcher
from unit_fast.kernels.dispatch.environment import Environment
from unit_fast.kernels.dispatch.store import Store
from unit_fast.runtime.kernel_graph import KernelGraph

NETWORKS = ("resnet50", "mobilenet_v2", "vit_b16", "resnet18_32")
BATCHES = (32, 1)
ROUNDS = 3
HOPPER = Environment("a GPU of sm_90", "", "", "", "", capability=90, programs=132)


def launches_of(name: str, batches: tuple[int, ...] = BATCHES) -> list[Launch]:
    """What warming up the network would time, of our fused kernels."""
    cpu = torch.device("cpu")
    program = sanitised_network(name, cpu, torch.float16)
    graph = KernelGraph(program.module, Dispatcher(HOPPER, cpu, Store(HOPPER), None))
    calls = [program.example.of_size(batch) for batch in batches]
    problems = [problem for call in calls for problem in graph.problems(graph.flat.tensors(call.args, call.kwargs))]
    return [
        (problem, candidate.name)
        for problem in dict.fromkeys(problems)
        for candidate in candidates_for(problem, HOPPER)
        if candidate.provider == "triton"
    ]


def seconds(launches: list[Launch], processes: int) -> tuple[float, int]:
    """How long so many processes take over an empty cache, and how many kernels are then in it.

    Raises:
        RuntimeError: a process failed.
    """
    with tempfile.TemporaryDirectory(prefix="compilation_") as cache, patch.dict(os.environ, TRITON_CACHE_DIR=cache):
        started = time.monotonic()
        failures = compile_in_processes(launches, HOPPER, processes)
        taken = time.monotonic() - started
        if failures:
            raise RuntimeError(f"processes that compile failed: {failures}")
        return taken, len(list(Path(cache).glob("*/*.cubin")))


def measure(names: tuple[str, ...] = NETWORKS, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """A row a network; one process and as many as there are cores take turns."""
    several = os.cpu_count() or 1
    rows = []
    for name in names:
        launches = launches_of(name)
        taken: dict[int, list[float]] = {1: [], several: []}
        kernels = 0
        for _ in range(rounds):
            for processes, times in taken.items():
                took, kernels = seconds(launches, processes)
                times.append(took)
        by_processes = {str(processes): times for processes, times in taken.items()}
        rows.append({"network": name, "launches": len(launches), "kernels": kernels, "seconds": by_processes})
    return rows


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    write_results("compilation", measure(tuple(options.networks), options.rounds), options.out)


if __name__ == "__main__":
    main()
