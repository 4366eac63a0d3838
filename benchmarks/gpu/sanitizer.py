"""Part "sanitizer": a sample of the values under NVIDIA's compute-sanitizer, one case a configuration.

memcheck finds accesses out of bounds, also those that happen to hit other memory and so leave values right; racecheck
finds races in shared memory. A planted write out of bounds shows that memcheck sees our kernels. torch allocates every
tensor by itself for this, since memcheck knows no bounds within torch's pool.
"""

# A kernel's arguments are Triton's own types, which have no annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from benchmarks.gpu.session import Session
from benchmarks.gpu.values import compare, smallest_cases
from unit_fast.kernels.configs import architecture

ROOT = Path(__file__).parents[2]
FOUND = 99  # the exit code by which compute-sanitizer says that it found something
RUNS = {"memcheck, planted": ("memcheck", "--planted"), "memcheck": ("memcheck",), "racecheck": ("racecheck",)}
EXPECTED = {"memcheck, planted": FOUND, "memcheck": 0, "racecheck": 0}
DRY_CASES = 4


def measure(session: Session) -> list[str]:
    """Run the sample under each tool and write what was found; a dry run without the tool runs the sample alone.

    Raises:
        RuntimeError: there is no compute-sanitizer, or it does not see the planted fault.
    """
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None and session.dry_run:
        run = _run([sys.executable, "-m", "benchmarks.gpu.sanitizer", "--most", str(DRY_CASES)], session.remaining)
        session.write("sanitizer", {"complete": False, "runs": {"no tool": run}})
        if run["exit_code"] != 0:
            raise RuntimeError(f"the sample does not run: {run['said'][-1:]}")
        return ["no compute-sanitizer: the sample alone, which is right"]
    if tool is None:
        raise RuntimeError("compute-sanitizer was not found; it comes with the CUDA toolkit, put its folder on PATH")
    figures: dict[str, Any] = {"complete": False, "runs": {}}
    for name, (check, *options) in RUNS.items():
        command = [tool, "--tool", check, "--error-exitcode", str(FOUND)]
        command += [sys.executable, "-m", "benchmarks.gpu.sanitizer", *options]
        command += ["--most", str(DRY_CASES)] if session.dry_run else []
        figures["runs"][name] = run = _run(command, session.remaining)
        run["as_expected"] = run["exit_code"] == EXPECTED[name]
        session.write("sanitizer", figures)
    figures["complete"] = True
    session.write("sanitizer", figures)
    if not figures["runs"]["memcheck, planted"]["as_expected"]:
        raise RuntimeError(
            "memcheck does not see the write out of bounds that was planted; its other words mean nothing"
        )
    return [
        f"{name}: {'as expected' if run['as_expected'] else run['said'][-1:]}" for name, run in figures["runs"].items()
    ]


def _run(command: list[str], seconds: float) -> dict[str, Any]:
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"exit_code": None, "said": [f"not done within {seconds:.0f} s"]}
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return {"exit_code": done.returncode, "said": said[-30:]}


@triton.jit
def _write_past_the_end_kernel(out_ptr, SIZE: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, 2 * SIZE), 1.0)


def main() -> int:
    """Compute the sample in this process; for compute-sanitizer to watch."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.sanitizer", description=main.__doc__)
    parser.add_argument("--planted", action="store_true", help="write out of bounds, and nothing else")
    parser.add_argument("--most", type=int, help="cases at most", metavar="NUMBER")
    options = parser.parse_args()
    if options.planted:
        if torch.cuda.is_available():
            _write_past_the_end_kernel[(1,)](torch.empty(1024, device="cuda"), SIZE=1024)
            torch.cuda.synchronize()
        return 0
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    wrong = 0
    for case in smallest_cases(architecture(major * 10 + minor))[: options.most]:
        found = compare(case)
        wrong += found["error"] > found["tolerance"]
        print(f"{case.name}: {found['error']:.2g}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
