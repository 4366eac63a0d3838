"""Does the int8 file keep every activation within its bound, and do integer kernels compute what the file says?

Both with graph optimisation off, where ONNX Runtime computes in float between integers, and on, where integer kernels
do; on inputs at which bounds bind. The two differ where a sum falls on the edge between two integers, and where
kernels overflow: processors without VNNI add two products in 16 bits.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from onnx import helper
from torch import Tensor

from unit_fast.errors import ParityError
from unit_fast.export.errors import FusionWarning
from unit_fast.export.flat import FlatGraph
from unit_fast.export.quantization.structure import IntegerClamp
from unit_fast.export.reference import BATCHES, SCALES
from unit_fast.export.runtimes import load_runtime
from unit_fast.export.session import OnnxRuntimeModel

# In dB. Edges cost 30 to 60 dB below the signal; sums that overflow leave a few.
LEAST_SIGNAL = 15.0
_LAYERS = ("Conv", "Gemm", "MatMul", "FusedConv", "FusedGemm")


def check_integers(
    graph: FlatGraph, quantized: Path, exposed: Path, clamped: Mapping[str, str], clamps: Sequence[IntegerClamp]
) -> None:
    """Run the int8 file and hold its activations to their bounds.

    Args:
        graph: which knows the inputs.
        quantized: the file.
        exposed: where a copy goes that gives out every clamped activation.
        clamped: by site, the name of that tensor.
        clamps: of the sites that are quantised.

    Raises:
        ParityError: an activation exceeds its bound, or the integer kernels differ from the file's float meaning.
    """
    _expose(quantized, exposed, list(clamped.values()))
    watched = {optimized: OnnxRuntimeModel(exposed, threads=1, optimize=optimized) for optimized in (False, True)}
    plain = {optimized: OnnxRuntimeModel(quantized, threads=1, optimize=optimized) for optimized in (False, True)}
    for name, scale in SCALES.items():
        for batch in BATCHES:
            inputs = graph.batch(batch, scale, noise=scale != 1)
            feed = {key: tensor.contiguous().numpy() for key, tensor in zip(graph.input_names, inputs, strict=True)}
            for optimized, model in watched.items():
                where = f"{name} inputs, batch {batch}, graph optimisation {'on' if optimized else 'off'}"
                found = model.run(feed)
                for clamp in clamps:
                    _check_bound(clamp, found[clamped[clamp.site]], where)
            _check_kernels(plain[False].run(feed), plain[True].run(feed), f"{name} inputs, batch {batch}")


def warn_of_float_layers(quantized: Path, optimized: Path) -> None:
    """Warn of layers with int8 weights that the installed ONNX Runtime does not run on integers.

    Args:
        quantized: the file.
        optimized: where the graph goes that ONNX Runtime makes of it.

    Warns:
        FusionWarning: names the first of them.
    """
    runtime = load_runtime("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(optimized)
    runtime.InferenceSession(str(quantized), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(optimized, load_external_data=False).graph.node
    widened = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    left = [node.name for node in nodes if node.op_type in _LAYERS and not node.domain and node.input[1] in widened]
    if left:
        warnings.warn(
            f"{len(left)} layers with int8 weights run in float in the ONNX Runtime that is installed "
            f"({', '.join(left[:5])}{', …' if len(left) > 5 else ''}); the file is right, but slower than it could be",
            FusionWarning,
            stacklevel=5,
        )


def _check_bound(clamp: IntegerClamp, activation: Tensor, where: str) -> None:
    bound = torch.from_numpy(clamp.bound)
    if bool((activation > bound).any()) or bool(torch.isnan(activation).any()):
        excess = (activation.double() - bound.double()).max().item()
        raise ParityError(f"site {clamp.site}, {where}: the int8 activation exceeds its bound by {excess:.3g}")


def _check_kernels(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    for name, value in expected.items():
        noise = excessive_noise(value, found[name])
        if noise is not None:
            raise ParityError(
                f"output {name}, {where}: ONNX Runtime's integer kernels give something else on this processor than "
                f"the file means (noise of {noise:.1%}); processors without VNNI overflow with 8-bit weights: export "
                "with weight_bits=7"
            )


def excessive_noise(meant: Tensor, found: Tensor) -> float | None:
    """The noise in what integer kernels ``found``, as a share of the signal; None where edges explain it."""
    if not meant.is_floating_point():
        return None
    noise, power = (values.pow(2).sum() for values in (meant.double() - found.double(), meant.double()))
    excessive = noise > 0 and not power / noise >= 10 ** (LEAST_SIGNAL / 10)
    return float((noise / power).sqrt()) if excessive else None


def _expose(quantized: Path, exposed: Path, names: Sequence[str]) -> None:
    model = onnx.load(quantized, load_external_data=False)
    outputs = {value.name for value in model.graph.output}
    for name in names:
        if name not in outputs:
            model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    onnx.save(model, exposed)
