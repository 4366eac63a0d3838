"""What exported files get right: the parts ``accuracy`` and ``noise`` of ``benchmarks.export``."""

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import unit_fast as uf
from benchmarks.export_files import PLAIN, Row, Way, Workshop, quantise_plainly, samples
from benchmarks.models import available
from tests import gtsrb
from tests.shared_data import ROOT
from unit_fast.calibration.samples import SampleStore
from unit_fast.errors import UnitFastError
from unit_fast.export import OnnxRuntimeModel
from unit_fast.export.quantization.accuracy import measure_accuracy
from unit_fast.export.report import ExportReport, Int8Accuracy

_logger = logging.getLogger("benchmarks.export")

FILES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("fp32", {}),
    ("fp16", {"precision": "fp16"}),
    ("int8", {"precision": "int8"}),
    ("int8, weights of 7 bits", {"precision": "int8", "weight_bits": 7}),
)
NOISE = ("resnet18_32", "mobilenet_v2_32", "mobilenet_v2", "efficientnet_lite0")
_QUANTIZE = "unit_fast.export.quantization.quantize.check_accuracy"
_SHIFT = "unit_fast.export.quantization.insert.mean_shift"


def accuracy() -> Iterator[Row]:
    """Backdoored networks, bounds of the default recipe: accuracy and attack success in torch and from every file."""
    if not ROOT.is_dir():
        _logger.warning("the part accuracy is left out: the evaluation data beside the project is absent")
        return
    for name in gtsrb.UNDEFENDED:
        for granularity in ("neuron", "channel"):
            yield from _accuracy(name, granularity)


def _accuracy(name: str, granularity: str) -> Iterator[Row]:
    model = gtsrb.load_model(name)
    bounds = uf.calibrate(model, gtsrb.batches("calibration"), granularity=granularity)  # type: ignore[arg-type]
    example = gtsrb.load_images("test")[0][:8]
    described = {"network": name, "granularity": granularity}
    figures, reference = _evaluated(uf.sanitize(model, bounds, example, backend="eager"), name)
    yield described | {"file": "none, in torch"} | figures
    with tempfile.TemporaryDirectory() as folder:
        for file, options in FILES:
            if options.get("precision") == "int8":
                options = options | {"calibration_data": gtsrb.batches("calibration")}
            report = uf.export_onnx(model, bounds, Path(folder) / "model.onnx", example_input=example, **options)
            figures, classes = _evaluated(OnnxRuntimeModel(report.path), name)
            agreement = (classes == reference).double().mean().item()
            yield described | {"file": file} | figures | {"agreement": agreement} | _errors(report)


def _errors(report: ExportReport) -> Row:
    if report.accuracy is not None or report.parity is None:
        return {"changed": report.accuracy.changed} if report.accuracy else {}
    return {"max_rel_error": report.parity.max_rel}


def _evaluated(model: Callable[[Tensor], Tensor], name: str) -> tuple[Row, Tensor]:
    """Accuracy and attack success on all test images, and the class of every image, clean and triggered."""
    classes: list[Tensor] = []

    def watched(images: Tensor) -> Tensor:
        scores = model(images)
        classes.append(scores.argmax(1))
        return scores

    trigger, target = gtsrb.trigger_of(name)
    report = uf.evaluate(watched, gtsrb.batches("test"), trigger=trigger, target=target)
    figures = {"accuracy": report.benign_accuracy, "attack_success": report.attack_success_rate}
    return figures, torch.cat(classes)


def noise(networks: Iterable[str]) -> Iterator[Row]:
    """int8 of networks by us, with biases corrected and not, and by onnxruntime.quantization without clamps."""
    for name in networks:
        if (reason := available(name)) is not None:
            _logger.warning("%s is left out: %s", name, reason)
            continue
        with tempfile.TemporaryDirectory() as folder:
            workshop = Workshop(Path(folder))
            for maker, measure in {
                "onnxruntime.quantization, no clamps": _plain_noise,
                "unit_fast, biases as they were": _uncorrected_noise,
                "unit_fast": _noise,
            }.items():
                described = {"network": name, "maker": maker}
                try:
                    found = measure(workshop, name)
                except UnitFastError as error:
                    yield described | {"error": type(error).__name__, "reason": str(error)}
                    continue
                figures = {"int8_snr_db": found.signal_to_noise, "agreement": found.agreement, "changed": found.changed}
                yield described | figures | {"samples": found.samples}


def _plain_noise(workshop: Workshop, name: str) -> Int8Accuracy:
    plain, quantized = workshop.export(name, PLAIN, verify=False).path, workshop.folder / "int8.onnx"
    batches = samples(workshop.network(name)[1])
    quantise_plainly(plain, quantized, batches)
    with SampleStore(batches) as store:
        return measure_accuracy(plain, quantized, store)


def _noise(workshop: Workshop, name: str) -> Int8Accuracy:
    with patch(_QUANTIZE):  # what it would refuse is measured all the same
        found = workshop.export(name, Way("auto", "channel", "int8"), verify=False).accuracy
    assert found is not None
    return found


def _uncorrected_noise(workshop: Workshop, name: str) -> Int8Accuracy:
    with patch(_SHIFT, return_value=0.0):
        return _noise(workshop, name)
