"""What a measurement holds for: the GPU, its driver, the compilers and the kernels' own source."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
import triton

from unit_fast.kernels.launch import capability_of, streaming_multiprocessors

_KERNELS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Environment:
    """Where candidates run. Measurements are kept apart for each.

    Attributes:
        device: its name, e.g. "NVIDIA H200"; "cpu" for the CPU.
        driver: version of the GPU's driver; empty on the CPU.
        torch: version, with the CUDA it was built for.
        triton: version.
        sources: of the kernels, the first 12 digits of their SHA-256.
        capability: compute capability, major·10 + minor; for the interpreter that of the newest paths.
        programs: how many programs run side by side.
        triton_runs: whether Triton kernels run at all: on a GPU, or on the CPU in the interpreter.
    """

    device: str
    driver: str
    torch: str
    triton: str
    sources: str
    capability: int
    programs: int
    triton_runs: bool = True

    @property
    def identity(self) -> dict[str, str]:
        """What must be equal for a measurement to hold."""
        fields = asdict(self)
        return {name: fields[name] for name in ("device", "driver", "torch", "triton", "sources")}

    @property
    def name(self) -> str:
        """The device as part of a file name: "nvidia-h200"."""
        return re.sub(r"[^a-z0-9]+", "-", self.device.lower()).strip("-")

    @property
    def file_name(self) -> str:
        """Of the file that holds this environment's measurements."""
        digest = hashlib.sha256(repr(sorted(self.identity.items())).encode()).hexdigest()[:12]
        return f"dispatch-{self.name}-{digest}.json"


@cache
def source_digest() -> str:
    """Changes with every file that a kernel is made from."""
    digest = hashlib.sha256()
    for path in sorted(_KERNELS.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def environment_of(device: torch.device) -> Environment:
    """The environment of ``device``."""
    probe = torch.empty(0, device=device)
    on_gpu = device.type == "cuda"
    return Environment(
        device=torch.cuda.get_device_name(device) if on_gpu else device.type,
        driver=_driver() if on_gpu else "",
        torch=f"{torch.__version__} cuda {torch.version.cuda}",
        triton=triton.__version__,
        sources=source_digest(),
        capability=capability_of(probe),
        programs=streaming_multiprocessors(probe),
        triton_runs=on_gpu or interpreting(),
    )


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels, on whatever device: TRITON_INTERPRET when they were imported."""
    from triton.runtime.interpreter import InterpretedFunction

    from unit_fast.kernels.pointwise import _epilogue_kernel

    return isinstance(_epilogue_kernel, InterpretedFunction)


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:  # Windows, or a container that hides it: the CUDA version that the driver offers
        return f"cuda {torch._C._cuda_getDriverVersion()}"  # type: ignore[attr-defined]
    found = re.search(r"\b(\d{3}\.\d+(\.\d+)?)\b", text)
    return found[1] if found else text.splitlines()[0]
