"""What a row of layer results says: of ``benchmarks.layers`` and of part "layers" of ``benchmarks.gpu``."""

from typing import Any

OURS = ("fused", "cudnn graph", "epilogue")
"""Providers that dispatch can choose on a GPU: our kernel, cuDNN's graph, a library and our epilogue."""


def best_of_ours(row: dict[str, Any]) -> str | None:
    """The fastest of those that were timed."""
    timed = [name for name in OURS if name in row.get("providers", {})]
    return min(timed, key=lambda name: float(row["providers"][name]["median"]), default=None)


def rate(row: dict[str, Any], provider: str) -> float:
    """Floating-point operations a second that a provider reached."""
    return float(row["flops"] / (row["providers"][provider]["median"] * 1e-6))


def lost_microseconds(row: dict[str, Any]) -> float:
    """What the best of ours takes beyond the roofline, in the network where the layer occurs most; 0 if not timed."""
    best = best_of_ours(row)
    if best is None:
        return 0.0
    most = max(row["networks"].values())
    return float(most * (row["providers"][best]["median"] - row["roofline_microseconds"]))
