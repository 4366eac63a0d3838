"""Pictures of how time and memory grow, and of what a bound costs."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results_file import read_results

Row = dict[str, Any]
COLOURS = {"unclamped": "#c8553d", "sanitised": "#2a6f97"}


def batch() -> Figure:
    """Milliseconds a sample and peak memory by batch size."""
    figure, (times, memory) = _two_panels()
    rows = read_results("scaling_batch")
    for provider, colour in COLOURS.items():
        line = sorted((row for row in rows if row["provider"] == provider), key=lambda row: row["batch"])
        sizes = [row["batch"] for row in line]
        low, middle, high = ([row[f"{name}_ms"] / row["batch"] for row in line] for name in ("p20", "median", "p80"))
        times.plot(sizes, middle, marker="o", color=colour, label=provider)
        times.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
        memory.plot(sizes, [row["peak_mib"] for row in line], marker="o", color=colour, label=provider)
    for panel, unit in ((times, "ms a sample"), (memory, "peak memory of the process, MiB")):
        panel.set_xscale("log", base=2)
        panel.set_xticks(sizes, [str(size) for size in sizes])
        _finish(panel, "samples a call", unit)
    times.legend()
    return figure


def granularity() -> Figure:
    """Time over no bounds, by granularity and batch size; whiskers from the 20th to the 80th percentile."""
    rows = {(row["provider"], row["batch"]): row for row in read_results("scaling_granularity")}
    batches = sorted({batch for _, batch in rows})
    kinds = ("none", "tensor", "channel", "neuron")
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    for panel, size in zip(figure.subplots(1, len(batches), sharey=True, squeeze=False)[0], batches, strict=True):
        none = rows["none", size]["median_ms"]
        middle = [rows[kind, size]["median_ms"] / none for kind in kinds]
        below = [m - rows[kind, size]["p20_ms"] / none for kind, m in zip(kinds, middle, strict=True)]
        above = [rows[kind, size]["p80_ms"] / none - m for kind, m in zip(kinds, middle, strict=True)]
        panel.bar(kinds, middle, 0.6, color=["#9a9a9a", *["#2a6f97"] * 3])
        panel.errorbar(kinds, middle, yerr=[below, above], fmt="none", ecolor="black", elinewidth=0.8, capsize=3)
        panel.axhline(1.0, color="grey", linewidth=0.8)
        panel.set_title(f"batch {size}")
        panel.set_xlabel("bounds per")
        panel.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("time over no bounds")
    return figure


def images() -> Figure:
    """Seconds and peak memory of calibration by the number of images."""
    figure, panels = _two_panels()
    rows = read_results("scaling_images")
    counts = [row["images"] for row in rows]
    for panel, key, unit in zip(panels, ("seconds", "peak_mib"), ("seconds", "peak memory, MiB"), strict=True):
        panel.plot(counts, [row[key] for row in rows], marker="o", color=COLOURS["sanitised"])
        _finish(panel, "clean images", unit)
    return figure


def _two_panels() -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    return figure, (left, right)


def _finish(panel: Axes, x: str, y: str) -> None:
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.set_ylim(0, 1.05 * panel.get_ylim()[1])
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
