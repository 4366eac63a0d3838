"""``unit-fast env``: what is installed, what can run here, and why the rest cannot."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any, get_args

from rich.table import Table

from unit_fast.cli import options
from unit_fast.cli.terminal import Terminal

# Package, and what goes without it.
_PACKAGES = {
    "unit_fast": "",
    "torch": "",
    "triton": "the triton backend",
    "numpy": "",
    "safetensors": "",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "verified export, the onnxruntime backend",
    "onnxruntime-gpu": "the same on CUDA; instead of onnxruntime, never beside it",
    "openvino": "the openvino backend, exports compared in it too",
    "pillow": "image folders, trigger pictures",
    "matplotlib": "plots of bounds",
    "scikit-learn": "the demo",
    "timm": "models named timm:…",
}


def env(json: options.Json = False) -> None:
    """Show versions, devices and backends: what can run here, and why the rest cannot."""
    terminal = Terminal(json=json)
    found = {"platform": _platform(), "packages": _packages(), "devices": _devices(), "backends": _backends()}
    if kernels := _kernels():
        found["kernels"] = kernels
    terminal.show(*(_table(title, values) for title, values in found.items()))
    terminal.result(found)


def _platform() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }


def versions() -> dict[str, str]:
    """What is installed of the packages that matter, by name."""
    return {name: found for name in _PACKAGES if (found := _version(name)) is not None}


def _packages() -> dict[str, str]:
    return {name: _version(name) or f"missing: {needed_for}" for name, needed_for in _PACKAGES.items()}


def _version(package: str) -> str | None:
    if package == "torch":
        import torch

        return str(torch.__version__)  # with the build, 2.11.0+cu130, which not every wheel's metadata has
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> dict[str, str]:
    import torch

    from unit_fast.cli.devices import cuda_absence

    devices = {"cpu": f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"}
    if not torch.cuda.is_available():
        return devices | {"cuda": f"none: {cuda_absence()}"}
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = (
            f"{about.name}, {about.total_memory / 2**30:.0f} GiB, compute capability {about.major}.{about.minor}"
        )
    return devices


def _backends() -> dict[str, Any]:
    from unit_fast.cli.devices import parse_device
    from unit_fast.runtime.backends import Backend, auto_choice, unavailable

    device = parse_device("auto")
    reasons = {backend: unavailable(backend, device) for backend in get_args(Backend) if backend != "auto"}
    able = {f"{name} on {device.type}": f"no: {reason}" if reason else "yes" for name, reason in reasons.items()}
    chosen, why = auto_choice(device)
    return able | {f"auto on {device.type}": f"{chosen}: {why}"}


def _kernels() -> dict[str, str]:
    """Where the triton backend's choices of kernels come from; nothing where it cannot run."""
    from unit_fast.cli.devices import parse_device
    from unit_fast.runtime.backends import unavailable

    device = parse_device("auto")
    if unavailable("triton", device) is not None:
        return {}
    from unit_fast.kernels.dispatch import dispatcher_for

    return dispatcher_for(device).describe()


def _table(title: str, values: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(name, str(value))
    return table
