"""Pictures from the results, in ``docs/images/``; ``python -m benchmarks.report`` draws them."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.results_file import RESULTS, read_results
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
    """ONNX Runtime on a CPU: time over no clamps, by form."""
    timed = [row for row in rows if "median_ms" in row and row["granularity"]]
    batches = sorted({row["batch"] for row in timed})
    names = list(dict.fromkeys(f"{row['form']}, per {row['granularity']}" for row in timed))
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    panel = figure.subplots()
    for place, batch in enumerate(batches):
        ratios = {f"{row['form']}, per {row['granularity']}": row["ratio"] for row in timed if row["batch"] == batch}
        at = [index + 0.4 * (place - (len(batches) - 1) / 2) for index in range(len(names))]
        colour = list(COLOURS.values())[place % len(COLOURS)]
        bars = panel.bar(at, [ratios.get(name, 0.0) for name in names], 0.38, label=f"batch {batch}", color=colour)
        panel.bar_label(
            bars, [f"{ratios[name]:.2f}" if name in ratios else "" for name in names], padding=2, fontsize=8
        )
    panel.axhline(1.0, color="grey", linewidth=0.8)
    panel.set_xticks(range(len(names)), names, rotation=20, ha="right")
    panel.set_ylim(0.8, None)
    panel.set_ylabel("time over no clamps")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend()
    return figure


def main() -> None:
    """Draw what there are results for."""
    mpl.rcParams["svg.hashsalt"] = "unit_fast"  # the same figures give the same bytes
    IMAGES.mkdir(parents=True, exist_ok=True)
    default = [row | {"tolerance": 0.03} for row in read_results("calibration_effect") if row["seed"] == 0]
    rows = sorted([*default, *read_results("calibration_tolerance")], key=lambda row: row["tolerance"])
    _save("tolerance", tolerance(rows))
    if (RESULTS / "runtime_cpu.json").exists():
        _save("speed", speed([row for row in read_results("runtime_cpu")["rows"] if "speed" in row]))
    if (RESULTS / "export_cost.json").exists():
        _save("clamp_cost", clamp_cost(read_results("export_cost")))


def _save(name: str, figure: Figure) -> None:
    atomic_write(IMAGES / f"{name}.svg", lambda path: figure.savefig(path, format="svg", metadata={"Date": None}))
