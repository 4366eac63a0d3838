"""What several tables write alike."""

from typing import Any


def spread(timing: dict[str, Any], unit: str = "_ms", digits: int = 2) -> str:
    """The median, and in brackets the 20th and 80th percentile: of ``median_ms``, ``p20_ms`` and ``p80_ms``.

    Args:
        timing: a row of results.
        unit: how the names of the figures end there.
        digits: after the point.
    """
    median, low, high = (f"{timing[f'{name}{unit}']:,.{digits}f}" for name in ("median", "p20", "p80"))
    return f"{median} ({low} to {high})"
