"""Exports of drawn networks with drawn bounds agree with the sanitised model, in every form."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.export.random_nets import JOINED, RESIDUAL, DrawnBounds, DrawnNet, RandomCase, drawn_bounds, drawn_nets
from tests.properties import examples
from unit_fast.export import OnnxRuntimeModel
from unit_fast.export.options import Options
from unit_fast.export.pipeline import export_graph
from unit_fast.fusion.rewrite import copy_graph
from unit_fast.sites import insert_bounds

FORMS = [
    ("auto", "onnxruntime"), ("auto", "openvino"), ("auto", "tflite"), ("folded", "generic"), ("mul_clip", "generic"),
    ("min", "generic"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::unit_fast.export.errors.SaturationWarning")  # 1e30 is out of reach
@examples(4)
@given(net=drawn_nets(), bounds=drawn_bounds(), form=st.sampled_from(FORMS))
@example(net=JOINED, bounds=DrawnBounds("channel", (None, 0.0, None, 1e-40)), form=("auto", "onnxruntime"))
@example(net=RESIDUAL, bounds=DrawnBounds("channel", (None, 0.0, None, None)), form=("folded", "generic"))
def test_random_graphs_with_any_bounds_agree(
    net: DrawnNet, bounds: DrawnBounds, form: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    case = RandomCase(net)
    learned = case.bounds(bounds)
    reference = insert_bounds(case.captured, dict(learned.items()))  # captured once, which takes longer than the rest
    path = tmp_path_factory.mktemp("random") / "model.onnx"
    options = Options(form[0], "fp32", 20, verify=True, target=form[1])

    report = export_graph(copy_graph(reference), learned, path, case.images, options)

    with torch.no_grad():
        expected = reference(case.images * 3)
        found = OnnxRuntimeModel(report.path)(case.images * 3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * max(expected.abs().max().item(), 1))
