"""Exported files of really backdoored models predict what the sanitised models predict, triggered images included."""

from pathlib import Path

import pytest
import torch

from tests.export.models import bounds_for
from tests.gtsrb import load_images, load_model, trigger_of
from tests.shared_data import needs_shared_data
from unit_fast.bounds import Granularity
from unit_fast.export import OnnxRuntimeModel, export_onnx
from unit_fast.runtime import sanitize


@needs_shared_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "granularity"),
    [
        ("gtsrb_vgg_badnets_target8", "neuron"),
        ("gtsrb_vgg_trojan_wm_target2", "channel"),
    ],
)
def test_predictions_agree_on_triggered_test_images(name: str, granularity: Granularity, tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    model = load_model(name)
    clean, _ = load_images("calibration")
    images, _ = load_images("test")
    trigger, _ = trigger_of(name)
    bounds = bounds_for(model, clean[:300], granularity, fraction=0.4)

    report = export_onnx(model, bounds, tmp_path / "model.onnx", example_input=clean[:8])

    assert all(site.reached for site in report.sites)
    run = OnnxRuntimeModel(report.path, threads=1)
    reference = sanitize(model, bounds, clean[:2], backend="eager")
    agree = 0
    with torch.no_grad():
        for batch in images.split(500):
            triggered = trigger(batch)
            expected = reference(triggered).argmax(1)
            agree += int((run(triggered).argmax(1) == expected).sum())
        changed = (model(triggered).argmax(1) != expected).double().mean()
    assert agree >= 0.999 * len(images)
    assert changed > 0.01, "these bounds change hardly a prediction, so that agreement shows nothing"
