"""Replacing a model and its external data: at every moment one of the two versions is whole."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from unit_fast.export import OnnxRuntimeModel, publish
from unit_fast.export.publish import data_name


def model(factor: float) -> ir.Model:
    """x times a constant of 64 numbers."""
    kind, shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 64])
    x = ir.Value(name="x", shape=shape, type=kind)
    constant = ir.Value(name="c", const_value=ir.tensor(np.full(64, factor, np.float32), name="c"))
    node = ir.Node("", "Mul", [x, constant], num_outputs=1)
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = "y", shape, kind
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[constant], opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


def place(factor: float, path: Path, work: Path) -> Path:
    """Write the model's two files in ``work`` and publish them; returns where the data went."""
    made = model(factor)
    work.mkdir()
    data = data_name(made, path)
    ir.save(made, work / "final.onnx", external_data=data, size_threshold_bytes=0)
    publish.publish(work / "final.onnx", path, work / data)
    return path.with_name(data)


def computed(path: Path) -> float:
    import torch

    return OnnxRuntimeModel(path)(torch.ones(1, 64))[0, 0].item()


def test_a_new_version_takes_the_place_of_the_old_with_its_data(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    first = place(2.0, out / "m.onnx", tmp_path / "a")
    assert computed(out / "m.onnx") == 2.0

    second = place(3.0, out / "m.onnx", tmp_path / "b")

    assert computed(out / "m.onnx") == 3.0
    assert first != second
    assert {entry.name for entry in out.iterdir()} == {"m.onnx", second.name}
    assert place(3.0, out / "m.onnx", tmp_path / "c") == second
    assert computed(out / "m.onnx") == 3.0


@pytest.mark.parametrize("again", [2.0, 3.0], ids=["same-data", "other-data"])
def test_a_failure_leaves_the_old_version_whole(again: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    first = place(2.0, out / "m.onnx", tmp_path / "a")

    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "atomic_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        place(again, out / "m.onnx", tmp_path / "b")

    assert {entry.name for entry in out.iterdir()} == {"m.onnx", first.name}
    assert computed(out / "m.onnx") == 2.0


def test_files_of_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "m.onnx").write_bytes(b"not a model")
    (out / "m.onnx.data").write_bytes(b"not ours")

    place(2.0, out / "m.onnx", tmp_path / "a")

    assert (out / "m.onnx.data").read_bytes() == b"not ours"
