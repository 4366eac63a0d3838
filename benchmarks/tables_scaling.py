"""The tables of how cost grows: measured on the CPU, and simulated by the roofline for a GPU."""

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.results_file import read_results
from benchmarks.table_cells import spread

SIMULATED_BATCHES = (1, 8, 32, 256)  # that are shown; all are in the file
Row = dict[str, Any]
Table = list[list[str]]


def batch() -> Table:
    """ResNet-18 by batch size."""
    return _pairs("batch", "batch", "samples a call")


def resolution() -> Table:
    """The same by image size."""
    return _pairs("resolution", "side", "side of the images")


def width() -> Table:
    """Six convolutions by their channels."""
    return _pairs("width", "width", "channels")


def threads() -> Table:
    """ResNet-18 by threads and batch size."""
    return _pairs("threads", ("threads", "batch"), "threads, samples a call")


def granularity() -> Table:
    """What a bound costs, over none."""
    rows = read_results("scaling_granularity")
    batches = sorted({row["batch"] for row in rows})
    found = {(row["provider"], row["batch"]): row for row in rows}
    head = [cell for size in batches for cell in (f"ms, batch {size}", f"time over none, batch {size}")]
    table = [["bounds per", *head]]
    for kind in ("none", "tensor", "channel", "neuron"):
        cells = []
        for size in batches:
            row, none = found[kind, size], found["none", size]
            cells += [spread(row), f"{row['median_ms'] / none['median_ms']:.2f}×"]
        table.append([kind, *cells])
    return table


def images() -> Table:
    """Calibration by the number of images."""
    rows = read_results("scaling_images")
    return [
        ["clean images", "seconds", "peak memory, MiB"],
        *([f"{row['images']:,}", f"{row['seconds']:.0f}", f"{row['peak_mib']:.0f}"] for row in rows),
    ]


def simulated() -> Table:
    """How much faster the fused network would be on an H200."""
    names = ("eager + clamp", "compile", "unclamped compile")
    table = [["network", "batch", "fused, ms", *(f"over {name}" for name in names)]]
    for row in read_results("simulation")["batch"]:
        if row["batch"] not in SIMULATED_BATCHES:
            continue
        fused = row["fused simulated_ms"]
        ratios = [f"{row[f'{name} simulated_ms'] / fused:.2f}×" for name in names]
        table.append([row["network"], str(row["batch"]), f"{fused:.3f}", *ratios])
    return table


def simulated_cpu() -> Table:
    """The roofline's time beside the measured one, where it can be checked."""
    rows = read_results("simulation")["cpu"]["rows"]
    simulated = {(row["provider"], row["batch"]): row["simulated_ms"] for row in rows}
    table = [["network", "batch", "simulated, ms", "measured, ms", "simulated over measured"]]
    for row in read_results("scaling_batch"):
        least, measured = simulated.get((row["provider"], row["batch"])), row["median_ms"]
        if least is not None:
            cells = [f"{least:.2f}", f"{measured:.2f}", f"{least / measured:.2f}"]
            table.append([row["provider"], str(row["batch"]), *cells])
    return table


def _pairs(part: str, keys: str | tuple[str, ...], heading: str) -> Table:
    """Unclamped and sanitised side by side, a line for every value of ``keys``."""
    names = (keys,) if isinstance(keys, str) else keys
    lines: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in _rows(part):
        lines.setdefault(tuple(row[name] for name in names), {})[row["provider"]] = row
    table = [[heading, "unclamped, ms", "sanitised, ms", "time over unclamped", "peak memory, MiB"]]
    for values, by_provider in lines.items():
        plain, clamped = by_provider["unclamped"], by_provider["sanitised"]
        memory = f"{plain['peak_mib']:.0f} → {clamped['peak_mib']:.0f}"
        ratio = f"{clamped['median_ms'] / plain['median_ms']:.2f}×"
        table.append([", ".join(map(str, values)), spread(plain), spread(clamped), ratio, memory])
    return table


def _rows(part: str) -> Iterable[Row]:
    found: Iterable[Row] = read_results(f"scaling_{part}")
    return found


TABLES: dict[str, Callable[[], Table]] = {
    "scaling_batch": batch,
    "scaling_resolution": resolution,
    "scaling_width": width,
    "scaling_threads": threads,
    "scaling_granularity": granularity,
    "scaling_images": images,
    "simulated": simulated,
    "simulated_cpu": simulated_cpu,
}
