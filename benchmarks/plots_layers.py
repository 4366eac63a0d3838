"""Pictures of layers on the roofline, and of whole networks on a GPU."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.layer_rows import best_of_ours, rate
from benchmarks.results_file import gpu_results, read_results

Row = dict[str, Any]
COLOURS = {"eager": "#c8553d", "ours": "#2a6f97"}
OTHERS = ("eager", "default", "reduce_overhead", "max_autotune", "unclamped_reduce_overhead", "unclamped_max_autotune")


def roofline(figures: dict[str, Any], ours: Callable[[Row], str | None], name: str) -> Figure:
    """Arithmetic intensity against the rate that is reached, a panel a batch size, below the measured ceilings.

    Args:
        figures: with ``ceilings`` and ``rows`` as ``benchmarks.layers`` and ``benchmarks.gpu.layers`` write them.
        ours: which provider of a row is ours; rows without one are left out.
        name: of the device.
    """
    rows = [row for row in figures["rows"] if "eager" in row.get("providers", {}) and ours(row)]
    batches = sorted({row["batch"] for row in rows})
    figure = Figure(figsize=(4.2 * len(batches), 3.8), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    intensities = [row["flops"] / row["bytes"] for row in rows]
    for panel, batch in zip(panels, batches, strict=True):
        panel.set(xscale="log", yscale="log")
        _ceilings(panel, figures["ceilings"], min(intensities) / 2, max(intensities) * 2)
        shown = [row for row in rows if row["batch"] == batch]
        for kind, colour, size in (("eager", COLOURS["eager"], 22), ("ours", COLOURS["ours"], 16)):
            providers = ["eager" if kind == "eager" else str(ours(row)) for row in shown]
            rates = [rate(row, provider) for row, provider in zip(shown, providers, strict=True)]
            label = "eager, clamped" if kind == "eager" else "unit_fast"
            x = [row["flops"] / row["bytes"] for row in shown]
            panel.scatter(x, rates, size, colour, alpha=0.8, linewidths=0, label=label)
        panel.set_title(f"{name}, batch {batch}")
        panel.set_xlabel("operations a byte")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("operations a second")
    panels[-1].legend(loc="lower right")
    return figure


def _ceilings(panel: Axes, ceilings: dict[str, Any], left: float, right: float) -> None:
    x = np.geomspace(left, right, 200)
    bandwidths = {"memory": ceilings["bandwidth"]}
    if copies := ceilings.get("copies"):
        bandwidths["cache"] = max(bandwidth for _, bandwidth in copies)
    for style, (kind, bandwidth) in zip(("-", "--"), bandwidths.items(), strict=False):
        y = np.minimum(x * bandwidth, ceilings["peak"])
        panel.plot(x, y, style, color="grey", linewidth=1.2, label=f"{kind}: {bandwidth / 1e9:,.0f} GB/s")
    panel.plot(x, np.full_like(x, ceilings["peak"]), ":", color="grey", linewidth=0.8)


def roofline_cpu() -> Figure:
    """From ``results/layers_cpu.json``."""
    return roofline(read_results("layers_cpu"), lambda _row: "sanitised", "CPU")


def roofline_gpu() -> Figure:
    """From the GPU whose layers were measured; of several the last by name."""
    device, figures = list(gpu_results("layers").items())[-1]
    return roofline(figures, best_of_ours, device)


def models_gpu() -> Figure:
    """How many times as fast ours is as each other way, a panel a batch size, a group of bars a network."""
    device, figures = list(gpu_results("models").items())[-1]
    ratios = {tuple(case.split("/")): found for case, found in figures["ratios"].items()}
    batches = sorted({batch for _, batch in ratios}, key=int)
    shown = [name for name in OTHERS if any(name in found for found in ratios.values())]
    figure = Figure(figsize=(4.2 * len(batches), 3.8), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for panel, batch in zip(panels, batches, strict=True):
        networks = [network for network, size in ratios if size == batch]
        for place, other in enumerate(shown):
            at = [index + 0.8 * ((place + 0.5) / len(shown) - 0.5) for index in range(len(networks))]
            heights = [ratios[network, batch].get(other, 0.0) for network in networks]
            panel.bar(at, heights, 0.8 / len(shown), label=f"over {other.replace('_', ' ')}")
        panel.axhline(1.0, color="grey", linewidth=0.8)
        panel.set_xticks(range(len(networks)), networks, rotation=20, ha="right")
        panel.set_title(f"{device}, batch {batch}")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("speed of unit_fast over others")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(shown), frameon=False)
    return figure
