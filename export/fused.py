"""Did the installed runtime fuse the clamps that were written so that it would?

A form is chosen for what a runtime makes of it, and runtimes change. Whether a clamp became a part of the layer before
it is read from the graph that the runtime really executes.
"""

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx

from unit_fast.errors import BackendUnavailableError, DataError
from unit_fast.export.errors import FusionWarning
from unit_fast.export.forms.form import Clamp, node_name
from unit_fast.export.openvino_model import OpenVinoModel
from unit_fast.export.runtimes import load_runtime

# ONNX Runtime lays channels out in blocks of 8 or 16, and fuses a sum with what follows in that layout only.
_BLOCK = 16
_CONVOLUTION = "Conv"


def warn_of_unfused(file: Path, target: str, clamps: Sequence[Clamp]) -> None:
    """Warn of clamps that count on being fused in ``target`` and are not in the version that is installed.

    Warns:
        FusionWarning: names the sites. Nothing is said of a runtime that is not installed, or not looked into.
    """
    wanted = _counting_on_fusion(onnx.load(file, load_external_data=False), target, clamps)
    if not wanted:
        return
    try:
        alone = {"onnxruntime": _onnxruntime_nodes, "openvino": _openvino_nodes}[target](file)
    except (BackendUnavailableError, DataError):
        return
    sites = [site for site in wanted if node_name(site) in alone]
    if sites:
        shown = ", ".join(sites[:5]) + (", …" if len(sites) > 5 else "")
        warnings.warn(
            f"{len(sites)} of {len(wanted)} clamps run as operators of their own in the {target} that is installed, "
            f"which was expected to fuse them ({shown}); the file is right, but slower than it could be. "
            'form="min" does not count on it',
            FusionWarning,
            stacklevel=5,
        )


def _counting_on_fusion(model: onnx.ModelProto, target: str, clamps: Sequence[Clamp]) -> list[str]:
    """Sites whose clamp follows what ``target`` fuses it into: a convolution, or a sum with one."""
    made = {name: node for node in model.graph.node for name in node.output}
    shapes = {
        value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in model.graph.value_info
    }
    sites = []
    for clamp in clamps:
        node = next((node for node in model.graph.node if node.name == node_name(clamp.site)), None)
        if node is None or clamp.op in (None, "Min"):
            continue
        source = made.get(node.input[0])
        if clamp.form == "mul_clip" and source is not None:
            source = made.get(source.input[0])
        if source is None:
            continue
        if source.op_type == _CONVOLUTION and target in ("onnxruntime", "openvino"):
            sites.append(clamp.site)
        elif clamp.op == "HardSigmoid" and target == "onnxruntime":
            channels = shapes.get(node.input[0], [0, 0])[1:2]
            if source.op_type == "Mul":
                source = made.get(source.input[0], source)
            convolved = any(name in made and made[name].op_type == _CONVOLUTION for name in source.input)
            if convolved and channels and channels[0] and channels[0] % _BLOCK == 0:
                sites.append(clamp.site)
    return sites


def _onnxruntime_nodes(file: Path) -> set[str]:
    runtime = load_runtime("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        optimized = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(optimized)
        runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return {node.name for node in onnx.load(optimized, load_external_data=False).graph.node}


def _openvino_nodes(file: Path) -> set[str]:
    return OpenVinoModel(file).unfused()
