"""Tables of what the runtime costs and detects."""

import itertools
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.results_file import read_results
from benchmarks.table_cells import NETWORKS, spread

_BASELINE = "unclamped torch.compile"
SIGNS = {
    "gtsrb_vgg_badnets_target8": "VGG, white patch (BadNets)",
    "gtsrb_vgg_trojan_wm_target2": "VGG, watermark (Trojan)",
}


def runtime_cpu() -> list[list[str]]:
    """Milliseconds by batch, with the spread, and the speed over the unclamped torch.compile."""
    rows = [row for row in read_results("runtime_cpu")["rows"] if "failed" not in row]
    batches = sorted({row["batch"] for row in rows})
    found: dict[tuple[str, int], dict[str, Any]] = {(row["provider"], row["batch"]): row for row in rows}
    heads = [text for batch in batches for text in (f"batch {batch}, ms (p20 to p80)", "speed")]
    table = [["way", *heads]]
    for provider in dict.fromkeys(row["provider"] for row in rows):
        cells = []
        for batch in batches:
            row = found[provider, batch]
            cells += [spread(row), f"{row['speed']:.2f}×"]
        table.append([provider, *cells])
    return table


def runtime_networks() -> list[list[str]]:
    """By network and batch size milliseconds without bounds, and the speed of each sanitised way over that."""
    rows = [row for row in read_results("runtime_networks")["rows"] if "speed" in row]
    ways = [way for way in dict.fromkeys(row["provider"] for row in rows) if way != _BASELINE]
    found = {(row["network"], row["batch"], row["provider"]): row for row in rows}
    table = [["network", "batch", f"{_BASELINE}, ms (p20 to p80)", *ways]]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    for network, batch in itertools.product(networks, sorted({row["batch"] for row in rows})):
        of_ways = [found.get((network, batch, way)) for way in ways]
        speeds = ["failed" if row is None else f"{row['speed']:.2f}×" for row in of_ways]
        table.append([NETWORKS[network], str(batch), spread(found[network, batch, _BASELINE]), *speeds])
    return table


def runtime_warmup() -> list[list[str]]:
    """What warming a network up takes auto in a first process, and in one that finds its choices."""
    found = {(row["network"], row["process"]): row for row in read_results("runtime_warmup")["rows"]}
    heads = ["first process, s (least to most)", "later ones, s", "peak memory, MiB", "later ones, MiB"]
    table = [["network", *heads]]
    for network in dict.fromkeys(network for network, _ in found):
        first, later = found[network, "first"], found[network, "next"]
        seconds = [_seconds(row["seconds"], *row["seconds_range"]) for row in (first, later)]
        table.append([NETWORKS[network], *seconds, *(f"{row['peak_mib']:.0f}" for row in (first, later))])
    return table


def compilation() -> list[list[str]]:
    """What the kernels of a first warm-up take to compile, in one process and on all cores."""
    rows = read_results("compilation")
    one, *several = rows[0]["seconds"]
    heads = [f"{one} process, s (least to most)", *(f"{count} processes, s" for count in several)]
    table = [["network", "launches", "kernels", *heads]]
    for row in rows:
        taken = [_seconds(median(times), min(times), max(times)) for times in row["seconds"].values()]
        table.append([row["network"], str(row["launches"]), str(row["kernels"]), *taken])
    return table


def _seconds(middle: float, least: float, most: float) -> str:
    return f"{middle:.1f} ({least:.1f} to {most:.1f})"


def monitor() -> list[list[str]]:
    """What looking for triggers adds to a call."""
    rows = read_results("runtime_monitor")["rows"]
    batches = sorted({row["batch"] for row in rows})
    found = {(row["call"], row["batch"]): row for row in rows}
    heads = [text for batch in batches for text in (f"batch {batch}, ms (p20 to p80)", "time over the output alone")]
    table = [["call", *heads]]
    for call, shown in (("alone", "`fast(x)`"), ("monitor", "`fast.monitor(x)`"), ("inspect", "`fast.inspect(x)`")):
        cells = [(found[call, batch], f"{found[call, batch]['over_alone']:.3f}×") for batch in batches]
        table.append([shown, *(text for row, ratio in cells for text in (spread(row), ratio))])
    return table


def detection() -> list[list[str]]:
    """AUROC and detection rates of each measure."""
    heads = ["AUROC", "found at 1 % false alarms, %", "found at `threshold(0.01)`, %", "false alarms there, %"]
    table = [["network", "measure", *heads]]
    for row in read_results("runtime_detection")["rows"]:
        shares = (row["detected"], row["detected_at_threshold"], row["false_alarms_at_threshold"])
        cells = [f"{row['auroc']:.3f}", *(f"{100 * share:.1f}" for share in shares)]
        table.append([SIGNS[row["model"]], row["measure"], *cells])
    return table


TABLES: dict[str, Callable[[], list[list[str]]]] = {
    "runtime_cpu": runtime_cpu,
    "runtime_networks": runtime_networks,
    "runtime_warmup": runtime_warmup,
    "compilation": compilation,
    "runtime_monitor": monitor,
    "detection": detection,
}
