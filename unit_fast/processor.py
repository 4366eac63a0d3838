"""What the processor is called, where measurements on one hold for no other, and how wide int8 weights may be on it."""

import platform
from functools import cache
from pathlib import Path
from typing import Literal

CPUINFO = Path("/proc/cpuinfo")
_NUMBERS = (("family", "cpu family"), ("model", "model"), ("of", "CPU implementer"), ("part", "CPU part"))


@cache
def processor() -> str:
    """Name, family and model: the name alone may stand for several generations, one twice as fast as another."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    name = found.get("model name", platform.processor() or platform.machine())
    numbers = [f"{title} {found[key]}" for title, key in _NUMBERS if key in found]
    return ", ".join([name, *numbers])


def weight_bits() -> Literal[7, 8]:
    """How wide weights of int8 may be for integer kernels to be right here; 8 where the processor does not say.

    On x86 without VNNI they add up pairs of products in 16 bits, which overflows with 8-bit weights: ONNX Runtime,
    "Quantize ONNX Models", on ``reduce_range``.
    """
    try:
        flags = set(CPUINFO.read_text(encoding="utf-8").split())
    except OSError:
        return 8
    return 7 if "sse2" in flags and not flags & {"avx512_vnni", "avx_vnni"} else 8
