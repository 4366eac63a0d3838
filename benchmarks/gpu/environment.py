"""Part "environment": the machine, and the two ceilings that every other figure is held against.

Copy bandwidth counts bytes read and written, of a buffer many times L2. The peak of a dtype is that of one large matrix
product by the vendor's library, on random numbers: on zeros a chip runs faster than on data.
"""

import os
import subprocess
import time
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.pool import run_tasks
from benchmarks.gpu.session import Session
from benchmarks.gpu.timing import time_calls
from benchmarks.roofline import Ceilings

PEAKS = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}


def measure(session: Session) -> list[str]:
    """Write the environment and its ceilings."""
    figures: dict[str, Any] = {"machine": machine(session), "complete": False}
    session.write("environment", figures)
    found = measured_ceilings(session)
    session.write("environment", figures | found | {"complete": True})
    peaks = ", ".join(f"{name} {peak / 1e12:.3g} TFLOP/s" for name, peak in found["peaks"].items())
    return [f"copy {found['bandwidth'] / 1e12:.3g} TB/s, {peaks}"]


def machine(session: Session) -> dict[str, Any]:
    """GPU, driver and versions."""
    described: dict[str, Any] = {
        "device": session.device_name,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cores": os.cpu_count(),
        "processes": session.workers,
    }
    if session.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        described |= {
            "capability": properties.major * 10 + properties.minor,
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "smi": _smi(),
        }
    return described


def _smi() -> dict[str, str] | str:
    """What the driver says of itself and the clocks, as words; why not, where it doesn't."""
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,ecc.mode.current"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi gave nothing: {error}"
    return dict(zip(fields.split(","), (value.strip() for value in answer.split(",")), strict=False))


def measured_ceilings(session: Session) -> dict[str, Any]:
    """``{"bandwidth": bytes/s, "peaks": {dtype: FLOP/s}, "timings": …}``, measured once a session.

    Raises:
        RuntimeError: they could not be measured.
    """
    if not session.ceilings:
        deadline = max(session.deadline, time.monotonic() + 60)
        tasks = run_tasks(
            "benchmarks.gpu.environment:device_ceilings",
            [session.dry_run],
            workers=1,
            task_seconds=60,
            deadline=deadline,
        )
        outcome = next(tasks, None)
        if outcome is None or outcome.failure:
            why = "no answer in time" if outcome is None else outcome.failure
            raise RuntimeError(f"the ceilings could not be measured: {why}")
        session.ceilings = outcome.result
        tasks.close()
    return session.ceilings


def ceilings_of(session: Session, dtype: str) -> Ceilings:
    """The ceilings of the session's device for products of ``dtype``, a key of ``PEAKS``."""
    found = measured_ceilings(session)
    return Ceilings(found["bandwidth"], found["peaks"][dtype])


def device_ceilings(dry_run: bool) -> dict[str, Any]:
    """Measure them in this process; of tiny operands on the CPU in a dry run."""
    device = "cpu" if dry_run else "cuda"
    buffer, size = (2**16, 64) if dry_run else (2**32, 8192)
    source = torch.randint(0, 255, (buffer,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = time_calls([partial(target.copy_, source)], device)
    del source, target  # gigabytes
    timings, peaks = {"copy": asdict(copy)}, {}
    for name, dtype in PEAKS.items():
        torch.backends.cuda.matmul.fp32_precision = "tf32" if name == "tf32" else "ieee"
        edge = size // 2 if name == "fp32" else size
        a, b = (torch.randn(edge, edge, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
        timing = time_calls([partial(torch.mm, a, b)], device)
        timings[name], peaks[name] = asdict(timing), 2 * edge**3 / (timing.median * 1e-6)
    return {"bandwidth": 2 * buffer / (copy.median * 1e-6), "peaks": peaks, "timings": timings}
