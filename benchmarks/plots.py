"""Pictures from the results, in ``docs/images/``; ``python -m benchmarks.report`` draws them."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.results_file import read_results
from unit_fast.files import atomic_write

IMAGES = Path(__file__).parents[1] / "docs" / "images"
NAMES = {"gtsrb_vgg_badnets_target8": "BadNets patch", "gtsrb_vgg_trojan_wm_target2": "Trojan watermark"}
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


def main() -> None:
    """Draw what there are results for."""
    mpl.rcParams["svg.hashsalt"] = "unit_fast"  # the same figures give the same bytes
    IMAGES.mkdir(parents=True, exist_ok=True)
    default = [row | {"tolerance": 0.03} for row in read_results("calibration_effect") if row["seed"] == 0]
    rows = sorted([*default, *read_results("calibration_tolerance")], key=lambda row: row["tolerance"])
    figure = tolerance(rows)
    atomic_write(IMAGES / "tolerance.svg", lambda path: figure.savefig(path, format="svg", metadata={"Date": None}))
