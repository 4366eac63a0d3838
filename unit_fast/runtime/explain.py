"""What runs each site, and why, as rows and as text."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SiteNote:
    """How one site is run.

    Attributes:
        site: its name.
        fused: what runs together with the clamp, e.g. "conv2d + relu + clamp".
        runs: what runs it, e.g. "torch.compile" or the name of a kernel with its configuration.
        why: the reason: a measurement, or that nothing else can run it.
    """

    site: str
    fused: str
    runs: str
    why: str


def as_text(title: str, notes: Sequence[SiteNote]) -> str:
    """The title, then a table with a line a site."""
    rows = [("site", "fused", "runs", "why"), *((note.site, note.fused, note.runs, note.why) for note in notes)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([title, lines[0], "  ".join("─" * width for width in widths), *lines[1:]])
