"""Results as JSON, with what they were measured on."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from unit_fast.files import atomic_write

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Device, cores, threads and versions that figures depend on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "unit_fast")},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def write_part(name: str, part: str, figures: Any) -> Path:
    """Put ``figures`` under ``part`` into ``results/<name>.json``; other parts stay, so a cut-off run still yields."""
    path = RESULTS / f"{name}.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    content[part] = {"environment": environment(), "figures": figures}
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    return atomic_write(path, lambda temporary: temporary.write_text(text))
