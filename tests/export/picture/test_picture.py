from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.export.models import made_bounds, make
from unit_fast.errors import DataError
from unit_fast.export import ExportReport, SiteReport, export_onnx
from unit_fast.export.picture import draw_graph
from unit_fast.export.picture.nodes import read_boxes
from unit_fast.export.picture.svg import _COLOURS, _OTHER

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    model, images = make("mobilenet")
    path = tmp_path_factory.mktemp("exported") / "mobilenet.onnx"
    return export_onnx(model, made_bounds("mobilenet", "tensor"), path, example_input=images, verify=False)


def boxes_of(picture: Path) -> list[ET.Element]:
    return [group for group in ET.parse(picture).iter(f"{SVG}g") if "box" in group.get("class", "").split()]


def texts(element: ET.Element) -> list[str]:
    return [text.text or "" for text in element.iter(f"{SVG}text")]


def test_every_node_is_drawn_and_every_clamp_marked(report: ExportReport, tmp_path: Path) -> None:
    picture = draw_graph(report.path, tmp_path / "graph.svg", report.sites)

    model = onnx.load(report.path)
    boxes = boxes_of(picture)
    assert len(boxes) == len(model.graph.node) + len(model.graph.input) + len(model.graph.output)
    marked = [box for box in boxes if "clamp" in box.get("class", "").split()]
    assert [texts(box)[1] for box in marked] == [site.site for site in report.sites]
    assert [box.get("class", "").split()[-1] for box in marked] == [f"form-{site.form}" for site in report.sites]
    counts = {form: [site.form for site in report.sites].count(form) for form in {s.form for s in report.sites}}
    legend = {text for text in texts(ET.parse(picture).getroot()) if " clamp" in text}
    assert {f"{form}: {count} clamp{'s' if count != 1 else ''}" for form, count in counts.items()} <= legend


def test_pointing_at_a_box_shows_shapes_bounds_and_reasons(report: ExportReport, tmp_path: Path) -> None:
    boxes = boxes_of(draw_graph(report.path, tmp_path / "graph.svg", report.sites))

    bound = float(made_bounds("mobilenet", "tensor")[report.sites[0].site])
    (clamp,) = [box for box in boxes if report.sites[0].site in texts(box)]
    shown = clamp.findtext(f"{SVG}title") or ""
    assert report.sites[0].reason in shown
    assert f"{bound:.4g}" in shown
    assert "float batch×12×8×8" in shown
    convolutions = [texts(box)[0] for box in boxes if texts(box)[0].startswith("Conv")]
    assert convolutions == ["Conv 1×1", "Conv 3×3 /2 ×12 groups", "Conv 1×1"]


def test_the_same_file_gives_the_same_picture(report: ExportReport, tmp_path: Path) -> None:
    pictures = [draw_graph(report.path, tmp_path / name, report.sites).read_bytes() for name in ("a.svg", "b.svg")]
    assert pictures[0] == pictures[1]
    assert b"http" not in pictures[0].replace(b"http://www.w3.org/2000/svg", b""), "nothing is loaded from elsewhere"


def test_a_page_holds_the_same_picture(report: ExportReport, tmp_path: Path) -> None:
    page = draw_graph(report.path, tmp_path / "graph.html", report.sites).read_text()
    assert page.startswith("<!doctype html>")
    assert draw_graph(report.path, tmp_path / "graph.svg", report.sites).read_text() in page


@pytest.mark.parametrize(
    ("model", "picture", "says"),
    [("mobilenet.onnx", "graph.png", r"ends in \.svg or \.html"), ("absent.onnx", "graph.svg", "no file .*absent")],
    ids=["ending", "missing-model"],
)
def test_mistakes(report: ExportReport, tmp_path: Path, model: str, picture: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        draw_graph(report.path.with_name(model), tmp_path / picture, report.sites)
    assert not list(tmp_path.iterdir())


def test_names_are_text_and_no_markup(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("<b>&", TensorProto.FLOAT, ["batch", 2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    node = helper.make_node("Relu", ["<b>&"], ["y"], name="<script>/clamp")
    onnx.save(helper.make_model(helper.make_graph([node], "g", [value], [result])), tmp_path / "m.onnx")

    sites = [SiteReport("<script>", "min", "<i>", (), None)]
    boxes = boxes_of(draw_graph(tmp_path / "m.onnx", tmp_path / "graph.svg", sites))

    assert [texts(box)[0] for box in boxes] == ["<b>&", "Relu", "y"]
    assert texts(boxes[1])[1] == "<script>"


def test_quantised_pairs_are_one_box_and_weights_none() -> None:
    """x → Q → DQ → Conv(W ← DQ) → Q → DQ → y."""
    constants = {
        "scale": np.float32(0.1), "zero": np.uint8(0),
        "w_q": np.ones((4, 3, 1, 1), np.int8), "w_scale": np.float32(0.1), "w_zero": np.int8(0),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_d"]),
        helper.make_node("DequantizeLinear", ["w_q", "w_scale", "w_zero"], ["w"]),
        helper.make_node("Conv", ["x_d", "w"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "scale", "zero"], ["c_q"]),
        helper.make_node("DequantizeLinear", ["c_q", "scale", "zero"], ["y"]),
    ]
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size, 1, 1])]
        for name, size in (("x", 3), ("y", 4))
    ]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    boxes = read_boxes(helper.make_model(helper.make_graph(nodes, "g", *values, tensors)), [])

    assert [box.title.split()[0] for box in boxes] == ["x", "QuantizeLinear", "Conv", "QuantizeLinear", "y"]
    assert [box.sources for box in boxes] == [[], [0], [1], [2], [3]]


@pytest.mark.parametrize("form", [*_COLOURS, "other"])
@pytest.mark.parametrize(("which", "ink"), [(0, "#ffffff"), (1, "#10151c")], ids=["light", "dark"])
def test_text_on_clamps_can_be_read(form: str, which: int, ink: str) -> None:
    """WCAG 2.2, 1.4.3: a contrast of at least 4.5."""

    def luminance(colour: str) -> float:
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    lighter, darker = sorted((luminance(_COLOURS.get(form, _OTHER)[which]), luminance(ink)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5
