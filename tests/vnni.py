"""Whether ONNX Runtime's integer kernels add up 8-bit weights without overflow on this processor."""

from pathlib import Path

import pytest

_CPUINFO = Path("/proc/cpuinfo")


def skip_without_vnni() -> None:
    """Skip from here on, on an x86 processor without VNNI: export refuses 8-bit weights there, rightly."""
    flags = _CPUINFO.read_text().split() if _CPUINFO.exists() else []
    if "avx2" in flags and not {"avx512_vnni", "avx_vnni"} & set(flags):
        pytest.skip("8-bit weights overflow in ONNX Runtime on processors without VNNI")
