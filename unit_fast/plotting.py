"""Pictures of bounds. Needs matplotlib; nothing else imports this at start."""

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from unit_fast.errors import BoundsMismatchError

if TYPE_CHECKING:
    from unit_fast.bounds import Bounds


def plot_bounds(bounds: "Bounds") -> Figure:
    """One panel a site: clean activations (log counts), and the range and median of the bounds on them."""
    names = [name for name in bounds if name in bounds.clean]
    if not names:
        raise BoundsMismatchError("these bounds hold no histograms of clean activations; calibrate again to plot them")
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.4 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).reshape(-1)
    for panel, name in zip(panels, names, strict=False):
        clean = bounds.clean[name]
        panel.stairs(clean.counts.numpy(), clean.edges.numpy(), fill=True, color="#7a9cc6")
        values = bounds[name].reshape(-1)
        values = values[values.isfinite()]
        if values.numel():
            low, middle, high = np.quantile(values.numpy(), [0.05, 0.5, 0.95])
            panel.axvspan(low, high, color="#d1495b", alpha=0.2, linewidth=0)
            panel.axvline(middle, color="#d1495b", linewidth=1.5)
        panel.set_yscale("log")
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=7)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    figure.suptitle(f"Clean activations and their bounds per {bounds.granularity} (median, 5 % to 95 %)", fontsize=10)
    return figure
