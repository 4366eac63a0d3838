"""Forms on hand-made ONNX graphs, compared with numpy's own minimum in ONNX Runtime."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from unit_fast.bounds import Granularity
from unit_fast.errors import ParityError
from unit_fast.export import ExportError
from unit_fast.export.folding import SiteFold
from unit_fast.export.forms import TARGETS, Clamp, choose, lower
from unit_fast.export.structure import check_structure
from unit_fast.export.translate import MARKER, MARKER_DOMAIN, SiteBound

ACTIVATIONS: dict[str, Any] = {
    "Relu": lambda x: np.where(x > 0, x, np.float32(0)),
    "Clip": lambda x: np.clip(x, np.float32(0), np.float32(6)),
    "LeakyRelu": lambda x: np.where(x < 0, x * np.float32(0.125), x),
    "Identity": lambda x: x,
}


def marked_model(activation: str, shape: tuple[int, ...], *, read_twice: bool = False) -> ir.Model:
    """x ⇒ activation ⇒ marker ⇒ output; with ``read_twice`` the activation itself is an output too."""
    float32 = ir.TensorType(ir.DataType.FLOAT)
    dynamic = ir.Shape(["batch", *shape])
    x = ir.Value(name="x", shape=dynamic, type=float32)
    limits = []
    if activation == "Clip":
        for name, number in (("low", 0.0), ("high", 6.0)):
            limits.append(ir.Value(name=name, const_value=ir.tensor(np.float32(number).reshape(()), name=name)))
    attributes = {"alpha": ir.AttrFloat32("alpha", 0.125)} if activation == "LeakyRelu" else {}
    node = ir.Node("", activation, [x, *limits], attributes, num_outputs=1)
    marker = ir.Node(MARKER_DOMAIN, MARKER, node.outputs, {"index": ir.AttrInt64("index", 0)}, num_outputs=1)
    for value, name in ((node.outputs[0], "activation"), (marker.outputs[0], "y")):
        value.name, value.shape, value.type = name, dynamic, float32
    outputs = [marker.outputs[0], *([node.outputs[0]] if read_twice else [])]
    graph = ir.Graph(
        [x], outputs, nodes=[node, marker], initializers=limits, opset_imports={"": 20, MARKER_DOMAIN: 1}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def run(model: ir.Model, x: np.ndarray, *, optimize: bool) -> list[np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})


NUMBERS = st.one_of(
    st.floats(-1e6, 1e6, width=32),
    st.sampled_from([0.0, -0.0, 1e-40, -1e-40, 1e-30, 3.4028234663852886e38, float("inf")]),
)
SHAPES = {"tensor": (), "channel": (3, 1, 1), "neuron": (3, 2, 2)}


@examples(60)
@given(
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    granularity=st.sampled_from(sorted(SHAPES)),
    form=st.sampled_from(["auto", "clip", "min", "mul_clip"]),
    data=st.data(),
)
def test_every_form_is_the_minimum_or_is_refused(
    activation: str, granularity: Granularity, form: str, data: Any
) -> None:
    shape = SHAPES[granularity]
    size = int(np.prod(shape))
    numbers = data.draw(st.lists(NUMBERS, min_size=size, max_size=size))
    bound = np.asarray(numbers, np.float32).reshape(shape)
    x = np.random.default_rng(0).normal(0, 4, (5, 3, 2, 2)).astype(np.float32)
    x[0] = 1e30
    x[1] = np.linspace(-1e-40, 1e-40, 12).reshape(3, 2, 2)
    expected = np.minimum(ACTIVATIONS[activation](x), bound)
    model = marked_model(activation, (3, 2, 2))
    unbounded = bool(np.isposinf(bound).all())

    if form == "clip" and not unbounded and (size > 1 or bound.item() < 0):
        with pytest.raises(ExportError, match="cannot express the clamp of site act"):
            lower(model, [SiteBound("act", bound)], choose(form, "openvino", granularity))
        return
    clamps = lower(model, [SiteBound("act", bound)], choose(form, "openvino", granularity))

    assert len(clamps) == 1
    assert (clamps[0].op is None) == unbounded
    assert MARKER_DOMAIN not in model.graph.opset_imports
    proto = ir.to_proto(model)
    check_structure(proto, clamps, 20)
    for optimize in (False, True):
        found = run(model, x, optimize=optimize)[0]
        if clamps[0].form == "mul_clip":
            np.testing.assert_allclose(found, expected, rtol=5e-7, atol=1e-36)
            assert (found <= bound).all()
        else:
            np.testing.assert_array_equal(found, expected)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def lowered(activation: str, bound: float | list[float], form: str, *, read_twice: bool = False) -> Any:
    model = marked_model(activation, (3,), read_twice=read_twice)
    granularity: Granularity = "tensor" if isinstance(bound, float) else "channel"
    (clamp,) = lower(model, [SiteBound("act", np.asarray(bound, np.float32))], choose(form, "generic", granularity))
    return model, clamp


def limits(clamp: Clamp) -> tuple[float, float]:
    assert clamp.lower is not None
    assert clamp.upper is not None
    return clamp.lower.item(), clamp.upper.item()


@pytest.mark.parametrize(
    ("activation", "bound", "expected"),
    [
        pytest.param("Relu", 2.0, (0.0, 2.0), id="relu"),
        pytest.param("Clip", 2.0, (0.0, 2.0), id="relu6-tighter"),
        pytest.param("Clip", 8.0, (0.0, 6.0), id="relu6-looser"),
    ],
)
def test_clip_takes_up_the_relu_or_clip_before_it(activation: str, bound: float, expected: tuple[float, float]) -> None:
    model, clamp = lowered(activation, bound, "clip")

    assert ops(model) == ["Clip"]
    assert limits(clamp) == expected
    assert all(value.shape is not None and len(value.shape) == 0 for value in model.graph.node(0).inputs[1:])


def test_clip_leaves_an_activation_that_others_read() -> None:
    model, clamp = lowered("Relu", 2.0, "clip", read_twice=True)

    assert ops(model) == ["Relu", "Clip"]
    assert limits(clamp) == (np.finfo(np.float32).min, 2.0)


def test_clip_after_another_activation_bounds_from_above_only() -> None:
    model, clamp = lowered("LeakyRelu", 2.0, "clip")

    assert ops(model) == ["LeakyRelu", "Clip"]
    assert limits(clamp) == (np.finfo(np.float32).min, 2.0)


@pytest.mark.parametrize(
    ("bound", "form"), [(2.0, "clip"), (-2.0, "min"), ([1.0, 2.0, 3.0], "min"), (float("inf"), "none")]
)
def test_auto_takes_clip_where_it_can_stand(bound: float | list[float], form: str) -> None:
    model, clamp = lowered("Relu", bound, "auto")

    assert clamp.form == form
    assert ops(model)[-1] == {"clip": "Clip", "min": "Min", "none": "Relu"}[form]


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")], ids=["nan", "minus-inf"])
@pytest.mark.parametrize("form", ["auto", "min"])
def test_bounds_that_runtimes_ignore_are_refused(bad: float, form: str) -> None:
    with pytest.raises(ExportError, match=r"bound of site act holds .*calibrate again"):
        lowered("Relu", [1.0, bad, 2.0], form)


@pytest.mark.parametrize(
    ("form", "target", "message"),
    [
        ("fold", "generic", "'fold' is unknown; the forms are: auto, clip, min, mul_clip, folded"),
        ("auto", "tensorflow", "'tensorflow' is unknown; the targets are: onnxruntime, openvino, tensorrt, tflite"),
    ],
)
def test_an_unknown_form_or_target_is_refused_with_those_there_are(form: str, target: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        choose(form, target, "tensor")


def test_mul_clip_saturates_at_the_bound_itself() -> None:
    bound = np.asarray([0.3, 0.7, 1e-3], np.float32)
    model = marked_model("Relu", (3,))
    (clamp,) = lower(model, [SiteBound("act", bound)], choose("mul_clip", "generic", "channel"))

    assert ops(model) == ["Mul", "Clip", "Mul"]
    assert np.array_equal(run(model, np.full((1, 3), 9.0, np.float32), optimize=True)[0][0], bound)
    assert clamp.scale is not None
    assert np.array_equal(clamp.scale, bound)


@pytest.mark.parametrize(
    ("activation", "bound", "reason"),
    [
        ("Relu", [1.0, -1.0, 2.0], "negative"),
        ("Relu", [1.0, float("inf"), 2.0], r"\+inf"),
        ("Relu", [1.0, 1e-35, 2.0], "1e-30"),
        ("LeakyRelu", [1.0, 0.0, 2.0], "its activation can be negative"),
        ("LeakyRelu", [1.0, 1e-20, 2.0], "1e-12"),
    ],
)
def test_mul_clip_gives_way_to_min_and_says_why(activation: str, bound: list[float], reason: str) -> None:
    _, clamp = lowered(activation, bound, "mul_clip")

    assert clamp.form == "min"
    assert re.search(f"no mul_clip: .*{reason}", clamp.reason)


def summed_model(factor: np.ndarray | None) -> ir.Model:
    """x + x, times ``factor``, ⇒ Relu ⇒ marker."""
    model = marked_model("Relu", (3,))
    relu = model.graph.node(0)
    x = model.graph.inputs[0]
    value = x
    nodes = [ir.Node("", "Add", [x, x], num_outputs=1)]
    value = nodes[0].outputs[0]
    if factor is not None:
        constant = ir.Value(name="factor", const_value=ir.tensor(factor, name="factor"))
        model.graph.register_initializer(constant)
        nodes.append(ir.Node("", "Mul", [value, constant], num_outputs=1))
        value = nodes[1].outputs[0]
    for index, node in enumerate(nodes):
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = f"sum_{index}", x.shape, x.type
        model.graph.insert_before(relu, node)
    relu.replace_input_with(0, value)
    return model


ONE = SiteBound("act", np.ones((), np.float32))
FOLDED = {"act": SiteFold("act", True, "folded", torch.tensor([2.0, 4.0, 8.0], dtype=torch.float64))}


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        pytest.param(None, ["Add", "HardSigmoid"], id="sum"),
        pytest.param(np.float32(0.25), ["Add", "HardSigmoid"], id="sum-times-a-number"),
        pytest.param(np.asarray([1, 2, 3], np.float32), ["Add", "Mul", "HardSigmoid"], id="sum-times-a-vector"),
    ],
)
def test_behind_a_sum_onnxruntime_gets_a_hard_sigmoid(factor: np.ndarray | None, expected: list[str]) -> None:
    model = summed_model(factor)
    x = np.linspace(-1, 3, 12, dtype=np.float32).reshape(4, 3)

    (clamp,) = lower(model, [ONE], choose("folded", "onnxruntime", "channel"), FOLDED)

    assert ops(model) == expected
    assert clamp.form == "folded"
    check_structure(ir.to_proto(model), [clamp], 20)
    for optimize in (False, True):
        found = run(model, x, optimize=optimize)[0]
        np.testing.assert_allclose(
            found, np.clip((x + x) * (1 if factor is None else factor), 0, 1), rtol=0, atol=1e-30
        )


@pytest.mark.parametrize(("target", "op"), [("generic", "Clip"), ("onnxruntime", "HardSigmoid")])
def test_the_clamp_of_a_folded_site_knows_its_scale(target: str, op: str) -> None:
    (clamp,) = lower(summed_model(None), [ONE], choose("folded", target, "channel"), FOLDED)

    assert clamp.op == op
    assert clamp.scale is not None
    assert clamp.scale.tolist() == [2.0, 4.0, 8.0]


def test_what_has_to_be_zero_takes_no_hard_sigmoid() -> None:
    model = summed_model(np.zeros(3, np.float32))
    x = np.linspace(-1, 3, 12, dtype=np.float32).reshape(4, 3)

    (clamp,) = lower(
        model, [ONE], choose("folded", "onnxruntime", "channel"), {"act": replace(FOLDED["act"], zero=True)}
    )

    assert clamp.op == "Clip"
    assert not run(model, x, optimize=True)[0].any()


def test_a_changed_hard_sigmoid_is_found() -> None:
    model = summed_model(None)
    clamps = lower(model, [ONE], choose("folded", "onnxruntime", "channel"), FOLDED)
    file = ir.to_proto(model)
    next(attribute for attribute in file.graph.node[-1].attribute if attribute.name == "alpha").f = 0.9

    with pytest.raises(ParityError, match=r"site act: HardSigmoid has .*expected alpha=1.0 and beta=1e-30"):
        check_structure(file, clamps, 20)


def test_a_changed_factor_behind_a_clip_is_found() -> None:
    model = marked_model("Relu", (3,))
    bound = SiteBound("act", np.asarray([0.3, 0.7, 1e-3], np.float32))
    clamps = lower(model, [bound], choose("mul_clip", "generic", "channel"))
    file = ir.to_proto(model)
    for tensor in file.graph.initializer:
        if tensor.name == "act/multiplied/factor":
            tensor.raw_data = np.asarray([0.3, 0.8, 1e-3], np.float32).tobytes()

    with pytest.raises(ParityError, match=r"site act: the file's factor .* by up to 0.1"):
        check_structure(file, clamps, 20)


def test_every_target_says_for_every_granularity_what_and_why() -> None:
    for target, lines in TARGETS.items():
        assert set(lines) == {"tensor", "channel", "neuron"}, target
        for line in lines.values():
            assert line.forms[-1] == "min"
            assert len(line.reason) > 20
