"""Everything worth knowing about the kernels on one GPU, in under nine minutes.

    python -m benchmarks.gpu                              # all parts but the last
    python -m benchmarks.gpu --part values,layers         # some, which share the time
    python -m benchmarks.gpu --dry-run                    # every part, on a machine without a GPU

Each part writes ``benchmarks/results/gpu_<device>_<part>.json`` as it goes, so that a run that is cut off yields:

environment  the machine, its copy bandwidth and its matrix products' peak
values       every shipped configuration × dtype × shapes against the reference: which differ, which fail
tests        the tests of kernels and of sanitize on the GPU: which fail, and why
layers       the layers of networks: library alone, + eager clamp, + our epilogue, fused; % of the roofline
dispatch     the table of choices for this GPU, which ships; a run that was cut off is continued by the next
models       whole networks against torch.compile, with the choices that were measured, and warm-up; likewise, as one
             will be: max-autotune takes minutes each
profile      the kernels of the three worst layers, with their registers, shared memory and occupancy
sanitizer    a sample of the values under compute-sanitizer; only when named
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.parts import PARTS, Part, deadline
from benchmarks.gpu.session import open_session
from benchmarks.results_file import RESULTS

MOST_WORKERS = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; returns 0, or 1 where one failed."""
    options = _parser().parse_args(arguments)
    parts = _chosen(options.part, options.dry_run)
    for threads in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
        os.environ.setdefault(threads, "1")  # of the processes of the pool: they share the cores already
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before a kernel is imported, here and in the processes of the pool
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    folder = options.out or (Path(tempfile.mkdtemp(prefix="benchmarks_gpu_")) if options.dry_run else RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + options.budget
    try:
        session = open_session(folder, dry_run=options.dry_run, workers=options.workers, seconds=options.budget)
    except RuntimeError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    failed = []
    for place, part in enumerate(parts):
        if time.monotonic() >= ends:
            print(f"{part.name}: left out, the {options.budget:.0f} s are spent", flush=True)
            failed.append(part.name)
            continue
        started = time.monotonic()
        session.deadline = deadline(part, parts[place + 1 :], started, ends)
        print(f"{part.name}: up to {session.remaining:.0f} s on {session.device_name}", flush=True)
        try:
            print("\n".join(part.measure(session)), flush=True)
        except Exception:  # noqa: BLE001 - one part's failure must not cost the others
            traceback.print_exc()
            failed.append(part.name)
        print(f"{part.name}: {time.monotonic() - started:.1f} s", flush=True)
    print(f"results in {folder}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", default="", help="names, separated by commas", metavar="PARTS")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, in Triton's interpreter")
    parser.add_argument("--out", type=Path, help="folder for the results (benchmarks/results)", metavar="DIR")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for everything (540)", metavar="SECONDS")
    parser.add_argument(
        "--workers",
        type=int,
        default=min(MOST_WORKERS, os.cpu_count() or 1),
        help="processes that compile and compare side by side (a core each, 16 at most)",
    )
    return parser


def _chosen(names: str, dry_run: bool) -> list[Part]:
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {part.name: part for part in PARTS}
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"there is no part {', '.join(unknown)}; expected some of {', '.join(known)}")
    return [part for part in PARTS if (part.name in wanted if wanted else part.by_default or dry_run)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
