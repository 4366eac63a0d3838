"""The structure check, on files that are valid ONNX and wrong."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from tests.export.test_forms import marked_model
from unit_fast.errors import ParityError
from unit_fast.export.forms import Clamp, choose, lower
from unit_fast.export.structure import check_structure
from unit_fast.export.translate import SiteBound


def exported(form: str) -> tuple[onnx.ModelProto, tuple[Clamp, ...]]:
    bound = np.asarray(1.5, np.float32) if form == "clip" else np.asarray([1.5, 0.0, 2.5], np.float32)
    model = marked_model("LeakyRelu", (3,))
    clamps = lower(model, [SiteBound("act", bound)], choose(form, "generic", "tensor"))
    return ir.to_proto(model), clamps


def limit(file: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in file.graph.initializer if tensor.name == name)


def clamp_node(file: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in file.graph.node if node.name == "act/clamp")


def lose(file: onnx.ModelProto) -> None:
    clamp_node(file).op_type = "Identity"
    del clamp_node(file).input[1:]


def double(file: onnx.ModelProto) -> None:
    extra = helper.make_node("Min", ["x", "act/bound"], ["spare"], name="other/clamp")
    file.graph.node.insert(0, extra)


def vector(file: onnx.ModelProto) -> None:
    limit(file, "act/upper").CopyFrom(numpy_helper.from_array(np.full(3, 1.5, np.float32), "act/upper"))


def one_value(file: onnx.ModelProto) -> None:
    limit(file, "act/upper").CopyFrom(numpy_helper.from_array(np.full(1, 1.5, np.float32), "act/upper"))


def other_bits(file: onnx.ModelProto) -> None:
    value = np.asarray([1.5, -0.0, 2.5], np.float32)
    limit(file, "act/bound").CopyFrom(numpy_helper.from_array(value, "act/bound"))


def no_lower(file: onnx.ModelProto) -> None:
    clamp_node(file).input[1] = ""


def past(file: onnx.ModelProto) -> None:
    file.graph.node.append(helper.make_node("Neg", [clamp_node(file).input[0]], ["spare"], name="reader"))


def dead(file: onnx.ModelProto) -> None:
    clamp_node(file).output[0] = "nowhere"
    file.graph.node.append(helper.make_node("Identity", ["x"], ["y"], name="copy"))


def computed(file: onnx.ModelProto) -> None:
    file.graph.node.insert(0, helper.make_node("Neg", ["act/bound"], ["negated"], name="neg"))
    clamp_node(file).input[1] = "negated"


def foreign(file: onnx.ModelProto) -> None:
    file.opset_import.append(helper.make_opsetid("unit_fast.export", 1))


@pytest.mark.parametrize(
    ("form", "damage", "message"),
    [
        pytest.param("min", lose, r"site act: expected one Min node act/clamp, found \['Identity'\]", id="lost"),
        pytest.param("min", double, "holds 2 clamps, expected 1", id="one-too-many"),
        pytest.param("clip", vector, r"Clip's limit act/upper has the shape \(3,\); expected a scalar", id="vector"),
        pytest.param("clip", one_value, r"Clip's limit act/upper has the shape \(1,\)", id="rank-1"),
        pytest.param("min", other_bits, "differs from the stored bound", id="one-bit"),
        pytest.param("clip", no_lower, "the limit '' is no constant", id="no-lower-limit"),
        pytest.param("min", past, "site act: 1 nodes read the activation past its clamp", id="bypass"),
        pytest.param("min", dead, "site act: nothing reads the clamped activation", id="dead"),
        pytest.param("min", computed, "the limit 'negated' is no constant", id="computed"),
        pytest.param("min", foreign, "imports the operator sets", id="foreign-operators"),
    ],
)
def test_damage_is_found(form: str, damage: Callable[[onnx.ModelProto], None], message: str) -> None:
    file, clamps = exported(form)
    assert check_structure(file, clamps, 20) == {"act": clamp_node(file).output[0]}

    damage(file)

    with pytest.raises(ParityError, match=message):
        check_structure(file, clamps, 20)


def subtract(file: onnx.ModelProto, result: str = "") -> None:
    source, clamped = clamp_node(file).input[0], clamp_node(file).output[0]
    file.graph.node.append(helper.make_node("Sub", [source, result or clamped], ["away"], name="away"))


def test_what_a_clamp_takes_away_is_read_once_where_that_was_asked_for_and_nowhere_else() -> None:
    file, clamps = exported("min")
    with pytest.raises(ParityError, match="site act: 0 subtractions read what its clamp takes away, expected one"):
        check_structure(file, clamps, 20, inspected=True)
    subtract(file)
    with pytest.raises(ParityError, match="site act: 1 nodes read the activation past its clamp"):
        check_structure(file, clamps, 20)

    assert check_structure(file, clamps, 20, inspected=True) == {"act": clamp_node(file).output[0]}

    subtract(file, "act/bound")
    with pytest.raises(ParityError, match="site act: 1 nodes read the activation past its clamp"):
        check_structure(file, clamps, 20, inspected=True)


def test_of_several_neurons_with_one_bound_the_largest_may_be_read_and_nothing_else() -> None:
    file, clamps = exported("min")
    source = clamp_node(file).input[0]
    file.graph.node.append(helper.make_node("ReduceMax", [source], ["largest"], name="largest"))
    file.graph.node.append(helper.make_node("Sub", ["largest", "act/bound"], ["away"], name="away"))

    assert check_structure(file, clamps, 20, inspected=True) == {"act": clamp_node(file).output[0]}

    file.graph.node[-1].input[1] = "largest"
    with pytest.raises(ParityError, match="site act: 0 subtractions read what its clamp takes away"):
        check_structure(file, clamps, 20, inspected=True)
    file.graph.node[-1].input[1] = "act/bound"
    file.graph.node.append(helper.make_node("ReduceMax", [source], ["pooled"], name="pooled"))
    with pytest.raises(ParityError, match="site act: 1 nodes read the activation past its clamp"):
        check_structure(file, clamps, 20, inspected=True)


def test_the_onnx_checker_alone_would_pass_a_vector_clip() -> None:
    file, clamps = exported("clip")
    vector(file)
    del file.graph.value_info[:]  # which would tell that a scalar is expected

    onnx.checker.check_model(file, full_check=True)
    with pytest.raises(ParityError, match="fails when it runs"):
        check_structure(file, clamps, 20)


def test_another_opset_than_asked_for_is_found() -> None:
    file, clamps = exported("min")

    with pytest.raises(ParityError, match="expected opset 21"):
        check_structure(file, clamps, 21)
