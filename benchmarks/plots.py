"""Pictures from the results, in ``docs/images/``; ``python -m benchmarks.report`` draws them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks import plots_layers, plots_scaling
from benchmarks.results_file import NotMeasured, read_results
from unit_fast.files import atomic_write

IMAGES = Path(__file__).parents[1] / "docs" / "images"
NAMES = {"gtsrb_vgg_badnets_target8": "BadNets patch", "gtsrb_vgg_trojan_wm_target2": "Trojan watermark"}
WAYS = {
    "unclamped torch.compile": "unclamped torch.compile",
    "unclamped ONNX Runtime": "unclamped ONNX Runtime",
    "sanitised eager": "sanitised, eager",
    "sanitised auto": "sanitised, unit_fast",
    "sanitised int8": "sanitised, unit_fast int8",
}
"""Providers of ``benchmarks.runtime`` that are drawn, and what they are called."""
QUANTILES = ("p20", "median", "p80")
COLOURS = {"neuron": "#2a6f97", "channel": "#c8553d"}


def tolerance(rows: list[dict[str, Any]]) -> Figure:
    """Accuracy against attack success as the tolerance varies, a panel a model."""
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    for panel, (model, title) in zip(figure.subplots(1, 2), NAMES.items(), strict=True):
        for granularity, colour in COLOURS.items():
            points = [row for row in rows if (row["model"], row["granularity"]) == (model, granularity)]
            lost = [100 * (row["accuracy"][0] - row["accuracy"][1]) for row in points]
            left = [100 * row["attack_success"][1] for row in points]
            panel.plot(lost, left, marker="o", color=colour, label=f"per {granularity}")
            for row, x, y in zip(points, lost, left, strict=True):
                if row["tolerance"] == 0.03:
                    panel.plot([x], [y], marker="o", markersize=11, markerfacecolor="none", color=colour)
        panel.set_title(title)
        panel.set_xlabel("accuracy lost on clean test images (points)")
        panel.set_yscale("symlog", linthresh=1)
        panel.set_ylim(0, 110)
        panel.set_yticks([0, 1, 2, 5, 10, 20, 50, 100], ["0", "1", "2", "5", "10", "20", "50", "100"])
        panel.grid(alpha=0.3)
        panel.legend()
    figure.axes[0].set_ylabel("attack success left (%)")
    return figure


def speed(rows: list[dict[str, Any]]) -> Figure:
    """Serving in PyTorch on a CPU: speed over the unclamped torch.compile, a panel a batch size."""
    batches = sorted({row["batch"] for row in rows})
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    for panel, batch in zip(figure.subplots(1, len(batches), sharey=True), batches, strict=True):
        shown = [row for row in rows if row["batch"] == batch and row["provider"] in WAYS]
        shown.sort(key=lambda row: -list(WAYS).index(row["provider"]))
        colours = [COLOURS["neuron" if row["provider"].startswith("sanitised") else "channel"] for row in shown]
        bars = panel.barh([WAYS[row["provider"]] for row in shown], [row["speed"] for row in shown], color=colours)
        panel.bar_label(bars, [f"{row['speed']:.2f}×" for row in shown], padding=3)
        panel.axvline(1.0, color="grey", linewidth=0.8)
        panel.set_xlim(0, 1.18 * max(row["speed"] for row in shown))
        panel.set_title(f"batch {batch}")
        panel.set_xlabel("speed over the unclamped torch.compile")
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def clamp_cost(rows: list[dict[str, Any]]) -> Figure:
    """ONNX Runtime on a CPU: time over no clamps, by form; whiskers from the 20th to the 80th percentile."""
    clamps = [row for row in rows if row["granularity"] and not row["form"].endswith("inspect")]
    timed = [row for row in clamps if "median_ms" in row]
    batches = sorted({row["batch"] for row in timed})
    names = list(dict.fromkeys(f"{row['form']}, per {row['granularity']}" for row in timed))
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    panel = figure.subplots()
    for place, batch in enumerate(batches):
        shown = [row for row in timed if row["batch"] == batch]
        at = [
            names.index(f"{row['form']}, per {row['granularity']}") + 0.24 * (place - (len(batches) - 1) / 2)
            for row in shown
        ]
        # The median without clamps, over which the ratio was taken.
        low, middle, high = ([row["ratio"] * row[f"{q}_ms"] / row["median_ms"] for row in shown] for q in QUANTILES)
        spread = [
            [m - each for m, each in zip(middle, low, strict=True)],
            [h - m for h, m in zip(high, middle, strict=True)],
        ]
        colour = list(COLOURS.values())[place % len(COLOURS)]
        panel.errorbar(at, middle, spread, fmt="o", color=colour, elinewidth=1, capsize=3, label=f"batch {batch}")
        for x, y in zip(at, middle, strict=True):
            panel.annotate(f"{y:.2f}", (x, y), (4, 3), textcoords="offset points", fontsize=8)
    panel.axhline(1.0, color="grey", linewidth=0.8)
    panel.set_xticks(range(len(names)), names, rotation=20, ha="right")
    panel.set_ylabel("time over no clamps")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend()
    return figure


def _tolerance() -> Figure:
    default = [row | {"tolerance": 0.03} for row in read_results("calibration_effect") if row["seed"] == 0]
    return tolerance(sorted([*default, *read_results("calibration_tolerance")], key=lambda row: row["tolerance"]))


def _speed() -> Figure:
    return speed([row for row in read_results("runtime_cpu")["rows"] if "speed" in row])


@dataclass(frozen=True)
class Picture:
    """A picture of the documents.

    Attributes:
        draw: makes it from the results; raises ``NotMeasured`` where there are none.
        shows: what it shows, for those who cannot see it.
    """

    draw: Callable[[], Figure]
    shows: str


PICTURES = {
    "tolerance": Picture(_tolerance, "Accuracy lost against attack success left, by tolerance"),
    "speed": Picture(_speed, "Speed of the sanitised network over the unclamped one, by batch size"),
    "clamp_cost": Picture(
        lambda: clamp_cost(read_results("export_cost")), "Time of each form in ONNX Runtime over no clamps"
    ),
    "roofline_cpu": Picture(plots_layers.roofline_cpu, "Layers on the roofline of the CPU"),
    "roofline_gpu": Picture(plots_layers.roofline_gpu, "Layers on the roofline of the GPU"),
    "models_gpu": Picture(plots_layers.models_gpu, "Speed of whole networks on the GPU over other ways, by batch size"),
    "scaling_batch": Picture(plots_scaling.batch, "Time a sample and peak memory by batch size"),
    "scaling_granularity": Picture(plots_scaling.granularity, "Time over no bounds by granularity"),
    "scaling_images": Picture(plots_scaling.images, "Seconds and memory of calibration by the number of images"),
}
"""By the name of their file in ``docs/images/``."""


def main(folder: Path = IMAGES) -> None:
    """Draw what there are results for."""
    mpl.rcParams["svg.hashsalt"] = "unit_fast"  # the same figures give the same bytes
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES.items():
        try:
            figure = picture.draw()
        except NotMeasured:
            continue
        atomic_write(folder / f"{name}.svg", partial(figure.savefig, format="svg", metadata={"Date": None}))
