"""export_onnx(): model and bounds ⇒ a verified ONNX file; optimize_onnx(): that ⇒ one for the machine at hand."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unit_fast.bounds import Bounds
from unit_fast.capture import Example
from unit_fast.errors import BackendUnavailableError
from unit_fast.export.normalization import MeanAndStd, Normalization
from unit_fast.export.report import ExportReport, OptimizedFile
from unit_fast.export.runtimes import load_runtime

if TYPE_CHECKING:
    from unit_fast.export.options import Options


def export_onnx(
    model: nn.Module | torch.export.ExportedProgram,
    bounds: Bounds,
    path: str | os.PathLike[str],
    *,
    example_input: Example,
    form: str = "auto",
    target: str = "onnxruntime",
    precision: str = "fp32",
    opset: int = 20,
    verify: bool = True,
    normalization: Normalization | MeanAndStd | None = None,
    calibration_data: Iterable[Any] | None = None,
    weight_bits: int = 8,
    inspect: bool = False,
) -> ExportReport:
    """Write the sanitised model as an ONNX file that ONNX Runtime and other runtimes run.

    The file takes any batch size. It is checked before it appears: its structure (every clamp there, limits equal to
    the bounds bit for bit), and its outputs and activations in ONNX Runtime against the sanitised graph in torch, with
    graph optimisation off and on, at batches 1, 2 and 7, on inputs like the example and on inputs 10 and 100 times
    larger at which bounds bind. What fails leaves no file; a file that was there before stays.

    Args:
        model: the network the bounds were fitted on, in float32.
        bounds: from :func:`unit_fast.calibrate` or :meth:`unit_fast.Bounds.load`.
        path: the file to write; its folder must exist. The tensors of a model above 2 GB go to
            ``<path>.<digest>.data`` beside it.
        example_input: what the model is called with: a tensor, a tuple, or a dict of keyword arguments. Real samples
            are best, since verification starts from them.
        form: how clamps are written. "clip": one scalar Clip, bounds per tensor only. "min": Min with a constant.
            "mul_clip": Mul, Clip and Mul. "folded": bounds folded into the layers around, one scalar Clip a site. Both
            take Min where they are not legal, and the report says why. "auto": what suits the target.
        target: the runtime that "auto" chooses for, and that folded clamps are written for: "onnxruntime", "openvino",
            "tensorrt", "tflite", "ncnn" or "generic". Every file runs in every runtime.
        precision: "fp32"; "fp16": weights and activations, while inputs and outputs stay float32; or "int8": uint8
            activations whose scale is the bound, or which an integer Min clamps, int8 weights per channel. See
            docs/export.md.
        opset: ONNX operator set, 18 to 24.
        verify: False leaves the comparison in ONNX Runtime out (the structure is checked all the same); the report
            and the file's metadata say so. The cost of int8 is measured in any case.
        normalization: ``(mean, std)``, one number or one a channel: the file takes images in [0, 1] and computes
            (x − mean) / std itself, in the weights of its first layers where that is exact. ``example_input`` stays
            what the model is called with. Not in int8.
        calibration_data: for int8: batches of (x, y) or x, such as the loader that the bounds were calibrated on; a few
            hundred clean samples. Iterated once.
        weight_bits: for int8: 8, or 7 for processors without VNNI, whose integer kernels overflow.
        inspect: the file has one more output, "excess", (N,) float32: per sample, how far the worst activation lies
            above its bound, as :meth:`unit_fast.runtime.SanitizedModel.inspect` measures it. It is infinite for a
            sample with NaN in its input, or infinity unless the example has some. Thresholds for shares of false alarms
            go into the file's metadata. It needs bounds with clean readings; not in int8, nor in forms other than
            "clip" and "min".

    Raises:
        ExportError: the form, precision or opset is not available or cannot express a bound; an operator has no
            translation.
        CaptureError: the model has no plain graph.
        BoundsMismatchError: the bounds belong to another model.
        ParityError: the file would not compute what the sanitised graph computes; names site or output, batch, error.
            Or int8 changes more than 5 % of the predictions on the calibration data that were no ties, or costs more
            than a point of accuracy.
        DataError: calibration_data is missing, too small, holds NaN, does not fit the model, is all alike, or
            has another range than example_input; or inspect=True and the bounds hold no clean readings.
        BackendUnavailableError: onnx, onnxscript or ONNX Runtime are not installed.
        OutputError: the file cannot be written.
    """
    options = check_options(
        form=form, target=target, precision=precision, opset=opset, verify=verify, normalization=normalization,
        weight_bits=weight_bits, inspect=inspect,
    )  # fmt: skip
    from unit_fast.export.pipeline import export

    return export(model, bounds, Path(path), example_input, options, calibration_data)


def optimize_onnx(
    path: str | os.PathLike[str], output: str | os.PathLike[str], *, verify: bool = True
) -> OptimizedFile:
    """Write a float32 file that :func:`export_onnx` made as ONNX Runtime optimises it for this processor.

    Clamps per neuron then cost one pass over the activations, and no change of their layout before and after. The file
    computes the same, but only on the CPU, in the version of ONNX Runtime that made it and on processors of the same
    kind: its constants lie as these read them, and others would read them wrongly. So make it where it serves;
    :class:`OnnxRuntimeModel` refuses it elsewhere.

    Args:
        path: the portable file; it stays as it is.
        output: the file to write; its folder must exist.
        verify: compare the outputs of the two at batches 1, 2 and 7, on random inputs at which bounds bind.

    Raises:
        DataError: there is no such file, it is no ONNX, or its tensors lie in another file.
        ExportError: it is of another precision than float32, or was optimised already.
        ParityError: the new file would not compute what the other does.
        BackendUnavailableError: onnx or ONNX Runtime are not installed.
        OutputError: the file cannot be written, or is ``path`` itself.
    """
    try:
        from unit_fast.export.optimized import optimize
    except ImportError as error:
        raise BackendUnavailableError(f"optimize_onnx needs onnx ({error}); install unit_fast[onnxruntime]") from error
    return optimize(Path(path), Path(output), verify)


def check_options(
    *,
    form: str,
    target: str,
    precision: str,
    opset: int,
    verify: bool,
    normalization: Normalization | MeanAndStd | None,
    weight_bits: int,
    inspect: bool = False,
) -> "Options":
    """What :func:`export_onnx` does with its options before any work, for callers with work of their own to do first.

    Raises:
        ExportError: there is no such form, target, precision or opset, or they do not go together.
        BackendUnavailableError: onnx, onnxscript or ONNX Runtime are not installed.
    """
    try:
        import unit_fast.export.pipeline  # noqa: F401 - tells what is missing
        from unit_fast.export.options import Options
    except ImportError as error:
        raise BackendUnavailableError(
            f"the export needs onnx and onnxscript ({error}); install unit_fast[onnxruntime], or unit_fast[onnx] to "
            "export without verification"
        ) from error
    options = Options(form, precision, opset, verify, weight_bits, target, Normalization.of(normalization), inspect)
    options.check()
    if verify or precision == "int8":
        load_runtime("onnxruntime")
    return options
