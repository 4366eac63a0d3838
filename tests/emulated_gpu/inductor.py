"""``python -m tests.emulated_gpu.inductor``: the "compile" backend on the emulated device, with Inductor compiling.

Elsewhere on that device Inductor's graph runs as it is. Here Inductor lowers it for CUDA and compiles its kernels to
machine code for sm_90, none of which is launched; then its graph runs as it is. Prints the number of kernels.
"""

from __future__ import annotations

import os
import sys
import tempfile

os.environ |= {"TRITON_INTERPRET": "0", "TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}

from tests.emulated_gpu.plugin import COMPILE_FX  # before torch

# isort: split
import torch
import torch._inductor.compile_fx
import torch._inductor.runtime.triton_helpers
from torch._inductor.runtime.triton_heuristics import CachingAutotuner

from tests.export.models import made_bounds, make
from unit_fast.capture import capture
from unit_fast.kernels.compiling import compiling_for
from unit_fast.runtime.calls import Call
from unit_fast.runtime.compiled import Compiled
from unit_fast.runtime.program import Program
from unit_fast.sites import insert_bounds

NETWORKS = ("resnet", "vit")


def main() -> None:
    """Compile for one batch size, for others, and what monitor and inspect take."""
    kernels: list[str] = []

    def compiled(tuner: CachingAutotuner) -> None:
        kernels.extend(tuner.fn.__name__ for _ in tuner.compile_results)
        tuner.launchers = []

    def compile_then_run_as_it_is(graph, inputs, *args, **options):
        COMPILE_FX(graph, inputs, *args, **options)
        return lambda *values: graph(*values)

    CachingAutotuner._make_launchers = compiled
    torch._inductor.compile_fx.compile_fx = compile_then_run_as_it_is
    torch._inductor.runtime.triton_helpers.set_driver_to_gpu = lambda: None
    torch._C._cuda_getCurrentRawStream = lambda _device=0: 0
    gpu = torch.device("cuda")
    with compiling_for(90), tempfile.TemporaryDirectory() as cache:
        os.environ |= {"TRITON_CACHE_DIR": f"{cache}/triton", "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"}
        for name in NETWORKS:
            model, images = (one.to(gpu, torch.float16) for one in make(name))
            bounds = made_bounds(name, "neuron")
            values = {site: bound.to(gpu, torch.float16) for site, bound in bounds.items()}
            program = Program(insert_bounds(capture(model, images), values), bounds, Call.from_example(images))
            backend = Compiled(program)
            backend.warmup([2], monitor=True)
            backend.warm_inspect([2])
            backend(*program.example.of_size(3).args)
            assert backend._output.compiled_for.startswith("batch 2, 2 "), backend._output.compiled_for
    print(f"{len(kernels)} kernels")


if __name__ == "__main__":
    sys.exit(main())
