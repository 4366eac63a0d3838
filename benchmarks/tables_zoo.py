"""Tables of the networks that were tried as they are (``benchmarks.zoo``)."""

from collections.abc import Callable
from typing import Any

from benchmarks.results_file import read_results

Table = list[list[str]]
PRODUCTS = ("conv2d", "linear", "max_pool2d")  # operators whose kernel runs anyway, so that its clamp is no pass


def zoo() -> Table:
    """How many networks of each library came through each step."""
    figures = read_results("zoo")
    table = [
        ["networks of", "tried", "captured", "unchanged where bounds do not bind", "fused", "ONNX Runtime", "OpenVINO"]
    ]
    for source, version in figures["versions"].items():
        rows = [row for name, row in figures["networks"].items() if name.startswith(f"{source}:")]
        if rows:
            steps = ("captured", "identity", "fused", "onnx", "openvino")
            table.append([f"{source} {version}", str(len(rows)), *(_share(rows, step) for step in steps)])
    return table


def zoo_refused() -> Table:
    """Which did not, at which step, and what they said."""
    table = [["network", "step", "what it came to"]]
    for name, row in sorted(read_results("zoo")["networks"].items()):
        failed = next(((step, reason) for step, reason in row["steps"].items() if reason), None)
        if failed is not None:
            table.append([_named(name), failed[0], failed[1].replace("|", "\\|")])
    return table


def zoo_networks() -> Table:
    """Every network with its sites, and where our kernels put their clamps."""
    table = [["network", "sites", "clamps within a convolution, linear layer or pooling", "in a pass of their own"]]
    for name, row in sorted(read_results("zoo")["networks"].items()):
        clamps = row.get("clamps", {})
        within = sum(count for kind, count in clamps.items() if kind in PRODUCTS)
        counts = [str(within), str(sum(clamps.values()) - within)] if clamps else ["–", "–"]
        table.append([_named(name), str(row.get("sites", "–")), *counts])
    return table


def _share(rows: list[dict[str, Any]], step: str) -> str:
    """How many came through the step, and of how many where not all were put to it."""
    outcomes = [row["steps"][step] for row in rows if step in row["steps"]]
    passed = str(outcomes.count(None))
    return passed if len(outcomes) == len(rows) else f"{passed} of {len(outcomes)}"


def _named(name: str) -> str:
    source, _, what = name.partition(":")
    return f"{what} ({source})"


TABLES: dict[str, Callable[[], Table]] = {"zoo": zoo, "zoo_refused": zoo_refused, "zoo_networks": zoo_networks}
