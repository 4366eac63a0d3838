"""Files that users name: what is wrong with them is said, whoever opens them."""

import onnx
import pytest
from onnx import helper

from unit_fast.errors import DataError
from unit_fast.export.layout_config import read_signature
from unit_fast.export.onnx_file import metadata_of, open_onnx
from unit_fast.export.optimized import optimize
from unit_fast.export.picture import draw_graph


@pytest.fixture
def bad_file(tmp_path):
    """A file by what is wrong with it."""

    def made(wrong):
        path = tmp_path / "model.onnx"
        if wrong == "a folder":
            path.mkdir()
        elif wrong == "no protobuf":
            path.write_bytes(b"\xff\xffnot a model")
        elif wrong == "empty":
            path.touch()
        return path

    return made


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("missing", r"there is no file .*model\.onnx; expected an ONNX model"),
        ("a folder", r"cannot read .*model\.onnx: .*; expected an ONNX model"),
        ("no protobuf", r"model\.onnx is no ONNX model"),
        ("empty", r"model\.onnx is no ONNX model: it has no outputs"),
    ],
)
def test_what_is_wrong_is_said_wherever_a_file_is_opened(bad_file, tmp_path, wrong, message):
    path = bad_file(wrong)
    for opening in (
        open_onnx,
        read_signature,
        lambda file: draw_graph(file, tmp_path / "picture.svg", []),
        lambda file: optimize(file, tmp_path / "optimized.onnx", verify=True),
    ):
        with pytest.raises(DataError, match=message):
            opening(path)
    assert [file.name for file in tmp_path.iterdir()] == ([] if wrong == "missing" else ["model.onnx"])


def test_a_model_comes_with_its_metadata(tmp_path):
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([], "nothing", [value], [value]))
    helper.set_model_props(model, {"unit_fast.precision": "fp32"})
    onnx.save(model, tmp_path / "model.onnx")
    assert metadata_of(open_onnx(tmp_path / "model.onnx")) == {"unit_fast.precision": "fp32"}
