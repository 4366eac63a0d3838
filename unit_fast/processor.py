"""What the processor is called, where measurements on one hold for no other."""

import platform
from functools import cache
from pathlib import Path

_NUMBERS = (("family", "cpu family"), ("model", "model"), ("of", "CPU implementer"), ("part", "CPU part"))


@cache
def processor() -> str:
    """Name, family and model: the name alone may stand for several generations, one twice as fast as another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    name = found.get("model name", platform.processor() or platform.machine())
    numbers = [f"{title} {found[key]}" for title, key in _NUMBERS if key in found]
    return ", ".join([name, *numbers])
