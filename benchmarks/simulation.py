"""What the roofline says of whole networks: no measurement, and called none wherever it is shown.

    python -m benchmarks.simulation

Every kernel takes the longer of its products at full rate and its bytes at full bandwidth, nothing stays in a cache,
and a launch from a CUDA graph costs ``LAUNCH`` seconds. A convolution or product is one kernel; what follows it is so
many passes over memory, by the plan:

unclamped        the layer as it is; add and activation each a pass
eager + clamp    the same, and the clamp a pass
compile          add and activation in one pass; sanitised, the clamp in the same
fused            no pass: residual and bound are read, and the output written, by the layer's own kernel

Written to ``results/simulation.json``: for an H200 by batch and by the side of the images, and for this machine's CPU
beside what was measured on it (``results/scaling_batch.json``): how far off the model is where it can be checked.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import make
from benchmarks.results_file import RESULTS, NotMeasured, read_results, write_results
from benchmarks.roofline import Ceilings, bytes_moved, cpu_ceilings, flops
from benchmarks.shapes import NETWORKS, Layer, layers_in, layers_of
from unit_fast.capture import capture

H200 = Ceilings(bandwidth=4.3e12, peak=790e12)
"""Copy bandwidth and bfloat16 products as reported for the card; half precision runs at the same rate."""
LAUNCH = 1.5e-6
BATCHES = (1, 8, 32, 128, 256)
SIDES = (32, 64, 96, 128)


@dataclass(frozen=True)
class Plan:
    """How a layer's tail is run.

    Attributes:
        fused: within the layer's own kernel.
        joined: add, activation and clamp in one pass; else a pass each.
        clamped: with bounds, per neuron.
    """

    fused: bool
    joined: bool
    clamped: bool


PLANS = {
    "unclamped eager": Plan(fused=False, joined=False, clamped=False),
    "eager + clamp": Plan(fused=False, joined=False, clamped=True),
    "unclamped compile": Plan(fused=False, joined=True, clamped=False),
    "compile": Plan(fused=False, joined=True, clamped=True),
    "fused": Plan(fused=True, joined=True, clamped=True),
}


def layer_seconds(layer: Layer, batch: int, itemsize: int, ceilings: Ceilings, plan: Plan, launch: float) -> float:
    """The least time of a layer and its tail."""
    sample = math.prod(layer.out_sample)
    out, bound = itemsize * batch * sample, itemsize * sample * (plan.clamped and layer.bounded)
    own = bytes_moved(layer, batch, itemsize) - out * layer.residual - itemsize * sample * layer.bounded
    products = flops(layer, batch) / ceilings.peak
    steps = layer.residual + (layer.act != "identity") + (plan.clamped and layer.bounded)
    if plan.fused:
        own, passes = own + out * layer.residual + bound, []
    elif plan.joined:
        passes = [out * (2 + layer.residual) + bound] if steps else []
    else:
        passes = [3 * out] * layer.residual + [2 * out] * (steps - layer.residual) + [bound]
    seconds = max(products, own / ceilings.bandwidth) + sum(passes) / ceilings.bandwidth
    kernels = 1 + (0 if plan.fused else (steps > 0) if plan.joined else steps)
    return seconds + launch * kernels


def network_seconds(
    layers: Sequence[Layer], batch: int, itemsize: int, ceilings: Ceilings, plan: Plan, launch: float = LAUNCH
) -> float:
    """The sum over the layers; pools, norms that are not folded and attention are not counted."""
    return sum(layer_seconds(layer, batch, itemsize, ceilings, plan, launch) for layer in layers)


def by_batch() -> list[dict[str, Any]]:
    """Half precision on an H200, every network."""
    rows = []
    for network in NETWORKS:
        layers = layers_of(network)
        rows += [{"network": network, "batch": batch} | _plans(layers, batch, 2, H200) for batch in BATCHES]
    return rows


def by_side() -> list[dict[str, Any]]:
    """The same for ResNet-18 by the side of the images, 32 a call."""
    model, _ = make("resnet18_32")
    rows = []
    for side in SIDES:
        layers = tuple(layers_in(capture(model, torch.randn(2, 3, side, side))))
        rows.append({"network": "resnet18_32", "side": side, "batch": 32} | _plans(layers, 32, 2, H200))
    return rows


def against_measured() -> dict[str, Any]:
    """This machine's ceilings, and what the model says of everything that was measured on it by batch.

    Beside the measured times it stands in the document only, so that those are never older than their own table.
    """
    measured = read_results("scaling_batch")
    ceilings = cpu_ceilings().memory
    layers = layers_of("resnet18_32")
    plans = {"unclamped": PLANS["unclamped compile"], "sanitised": PLANS["compile"]}
    rows = []
    for row in measured:
        simulated = 1000 * network_seconds(layers, row["batch"], 4, ceilings, plans[row["provider"]], launch=0.0)
        rows.append({"provider": row["provider"], "batch": row["batch"], "simulated_ms": simulated})
    return {"bandwidth": ceilings.bandwidth, "peak": ceilings.peak, "rows": rows}


def _plans(layers: Sequence[Layer], batch: int, itemsize: int, ceilings: Ceilings) -> dict[str, float]:
    return {
        f"{name} simulated_ms": 1000 * network_seconds(layers, batch, itemsize, ceilings, plan)
        for name, plan in PLANS.items()
    }


def run(folder: Path = RESULTS) -> Path:
    """Write everything.

    Raises:
        NotMeasured: there are no figures of ``benchmarks.scaling --part batch`` to hold the model against.
    """
    measured = against_measured()
    ceilings = {"bandwidth": H200.bandwidth, "peak": H200.peak, "launch_seconds": LAUNCH}
    figures = {"h200": ceilings, "batch": by_batch(), "side": by_side(), "cpu": measured}
    return write_results("simulation", figures, folder)


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    try:
        print(run())
    except NotMeasured as missing:
        parser.error(f"there is no {missing}; first run: python -m benchmarks.scaling --part batch")


if __name__ == "__main__":
    main()
