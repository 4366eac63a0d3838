"""Files without a trace of where they were made."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.export.test_forms import marked_model
from unit_fast.errors import ParityError
from unit_fast.export.clean import check_private, name_activations, strip
from unit_fast.export.forms import choose, lower
from unit_fast.export.translate import SiteBound


def littered() -> ir.Model:
    model = marked_model("LeakyRelu", (3,))
    lower(model, [SiteBound("layer.act", np.ones(3, np.float32))], choose("min", "generic", "channel"))
    trace = f'File "{Path.cwd()}/model.py", line 10, in forward'
    model.metadata_props["source"] = trace
    model.doc_string = trace
    model.graph.doc_string = trace
    model.graph.metadata_props["source"] = trace
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.stack_trace"] = trace
        node.doc_string = trace
        node.outputs[0].metadata_props["source"] = trace
        node.outputs[0].doc_string = trace
    return model


def test_every_kind_of_note_is_stripped() -> None:
    model = littered()
    with pytest.raises(ParityError, match="which tells where it was made"):
        check_private(ir.to_proto(model))

    strip(model)

    proto = ir.to_proto(model)
    check_private(proto)
    assert str(Path.cwd()).encode() not in proto.SerializeToString()
    assert b"stack_trace" not in proto.SerializeToString()
    assert [node.op_type for node in proto.graph.node] == ["LeakyRelu", "Min"]


@pytest.mark.parametrize(
    "place",
    ["doc_string", "node_doc", "node_name", "metadata", "node_metadata", "value_name", "attribute", "tensor_name"],
)
@pytest.mark.parametrize(
    "secret", [f"{Path.home()}/model", f"{sys.prefix}/lib", 'File "net.py", line 3'], ids=["home", "prefix", "source"]
)
def test_a_path_is_found_wherever_it_hides(place: str, secret: str) -> None:
    model = littered()
    strip(model)
    proto = ir.to_proto(model)
    node = proto.graph.node[0]
    if place == "doc_string":
        proto.doc_string = secret
    elif place == "node_doc":
        node.doc_string = secret
    elif place == "node_name":
        node.name = secret
    elif place == "metadata":
        proto.metadata_props.add(key="note", value=secret)
    elif place == "node_metadata":
        node.metadata_props.add(key="note", value=secret)
    elif place == "value_name":
        node.output[0] = secret
    elif place == "attribute":
        node.attribute.append(onnx.helper.make_attribute("note", secret))
    else:
        proto.graph.initializer[0].name = secret

    with pytest.raises(ParityError, match="which tells where it was made"):
        check_private(proto)


def test_unused_constants_go() -> None:
    model = littered()
    spare = ir.Value(name="spare", const_value=ir.tensor(np.zeros(4, np.float32), name="spare"))
    model.graph.register_initializer(spare)

    strip(model)

    assert list(model.graph.initializers) == ["layer.act/bound"]


def test_activations_are_called_after_their_sites() -> None:
    model = littered()

    name_activations(model)

    assert [node.name for node in model.graph] == ["layer.act", "layer.act/clamp"]
    assert model.graph.node(0).outputs[0].name == "layer.act/activation"
