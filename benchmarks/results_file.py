"""Results as JSON, with what they were measured on."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from unit_fast.files import atomic_write
from unit_fast.processor import processor

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "triton", "onnxruntime", "openvino", "unit_fast")


def environment() -> dict[str, Any]:
    """Device, cores, threads and versions that figures depend on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # Triton where there is none; unit_fast run from a checkout
        return None


def write_results(name: str, figures: Any, folder: Path = RESULTS) -> Path:
    """Write ``figures`` to ``<folder>/<name>.json`` with the environment they were measured in."""
    text = json.dumps({"environment": environment(), "figures": figures}, indent=1, sort_keys=True) + "\n"
    return atomic_write(folder / f"{name}.json", lambda temporary: temporary.write_text(text))


class NotMeasured(FileNotFoundError):
    """There is no such result file."""


def read_results(name: str) -> Any:
    """The figures of ``results/<name>.json``.

    Raises:
        NotMeasured: there is no such file.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise NotMeasured(f"benchmarks/results/{name}.json")
    return json.loads(path.read_text())["figures"]


def gpu_results(part: str) -> dict[str, Any]:
    """The figures of ``results/gpu_<device>_<part>.json`` of every GPU, by its name.

    Raises:
        NotMeasured: there is no such file.
    """
    files = sorted(RESULTS.glob(f"gpu_*_{part}.json"))
    if not files:
        raise NotMeasured(f"benchmarks/results/gpu_<device>_{part}.json")
    return {
        path.stem.removeprefix("gpu_").removesuffix(f"_{part}").upper(): json.loads(path.read_text())["figures"]
        for path in files
    }
