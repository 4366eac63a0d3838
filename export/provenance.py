"""Where a file came from: what goes into its metadata_props."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import onnx_ir as ir
import torch

from unit_fast.bounds import Bounds
from unit_fast.export.flat import FlatGraph
from unit_fast.export.forms import Clamp
from unit_fast.export.normalization import Normalization
from unit_fast.export.quantization import IntegerClamp
from unit_fast.export.report import Int8Accuracy, ParityResult
from unit_fast.export.session import EXCESS_KEY, STRUCTURE_KEY

PRODUCER = "unit_fast"


def describe(
    bounds: Bounds,
    graph: FlatGraph,
    clamps: Sequence[Clamp | IntegerClamp],
    form: str,
    precision: str,
    parity: ParityResult | None,
    accuracy: Int8Accuracy | None = None,
    normalization: Normalization | None = None,
    thresholds: Mapping[float, float] | None = None,
) -> dict[str, str]:
    """Metadata by key, the same for the same export: no time, no machine, no path."""
    entries: dict[str, Any] = {
        "unit_fast.version": package_version("unit_fast"),
        "unit_fast.torch": torch.__version__,
        "unit_fast.onnx": package_version("onnx"),
        "unit_fast.model_sha256": bounds.fingerprint.sha256,
        "unit_fast.bounds_sha256": bounds.sha256,
        "unit_fast.granularity": bounds.granularity,
        "unit_fast.form": form,
        "unit_fast.forms": json.dumps(dict(sorted(Counter(clamp.form for clamp in clamps).items()))),
        "unit_fast.precision": precision,
        "unit_fast.parity": parity.summary() if parity else "not verified",
        STRUCTURE_KEY: json.dumps(graph.structure),
    }
    if normalization is not None:
        entries["unit_fast.normalization"] = json.dumps(asdict(normalization))
    if graph.excess is not None:
        entries[EXCESS_KEY] = json.dumps({"output": graph.excess, "thresholds": thresholds})
    if accuracy is not None:
        entries["unit_fast.int8"] = accuracy.summary()
    return {key: str(value) for key, value in entries.items()}


def sign(model: ir.Model, entries: dict[str, str]) -> None:
    """Write ``entries`` into ``model``, with unit_fast as its producer."""
    model.metadata_props.clear()
    model.metadata_props.update(entries)
    model.producer_name = PRODUCER
    model.producer_version = package_version("unit_fast")


def package_version(name: str) -> str:
    """Version of an installed package; "unknown" where it is not installed as one."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
