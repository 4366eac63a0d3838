"""ONNX graph ⇒ the same graph with stable names and nothing in it that tells where it was made."""

import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from unit_fast.errors import ParityError
from unit_fast.export.flat import FlatGraph

BATCH = "batch"
_SYMBOL = re.compile(r"\b[su]\d+\b")


def strip(model: ir.Model) -> None:
    """Remove what nothing reads and all metadata: stack traces, module classes, source paths, documentation."""
    RemoveUnusedNodesPass()(model)
    model.metadata_props.clear()
    model.doc_string = None
    for graph in model.graphs():
        graph.metadata_props.clear()
        graph.doc_string = None
        for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
            _strip_value(value)
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                _strip_value(value)


def _strip_value(value: ir.Value) -> None:
    value.metadata_props.clear()
    value.doc_string = None
    tensor = value.const_value
    if isinstance(tensor, ir.Tensor | ir.LazyTensor | ir.ExternalTensor):
        tensor.metadata_props.clear()


def name_signature(model: ir.Model, graph: FlatGraph) -> None:
    """Give inputs, outputs and the batch dimension the names that ``graph`` knows them by."""
    values = [*model.graph.inputs, *model.graph.outputs]
    names = [*graph.input_names, *graph.output_names]
    taken = set(names)
    model.graph.name = "sanitised"
    signature = set(values)
    for value in _values(model):
        if value not in signature and value.name in taken:
            _rename(value, f"{value.name}/inner", model)
    for value, name in zip(values, names, strict=True):
        _rename(value, f"signature/{name}", model)
    for value, name in zip(values, names, strict=True):
        _rename(value, name, model)
    _name_batch(model)


def _rename(value: ir.Value, name: str, model: ir.Model) -> None:
    if value.is_initializer():
        model.graph.initializers.pop(value.name or "")
        value.name = name
        model.graph.register_initializer(value)
    else:
        value.name = name


def _name_batch(model: ir.Model) -> None:
    """Call the first input's free dimension "batch" everywhere; other symbols keep their own names."""
    symbol = next(
        (
            dimension.value
            for value in model.graph.inputs
            if value.shape is not None
            for dimension in value.shape
            if isinstance(dimension, ir.SymbolicDim)
        ),
        None,
    )
    if symbol is None:
        return
    for value in _values(model):
        if value.shape is None:
            continue
        dimensions: list[int | ir.SymbolicDim] = []
        for dimension in value.shape:
            if isinstance(dimension, ir.SymbolicDim) and dimension.value is not None:
                name = re.sub(rf"\b{re.escape(symbol)}\b", BATCH, dimension.value)
                dimensions.append(ir.SymbolicDim(name))
            else:
                dimensions.append(dimension)
        value.shape = ir.Shape(dimensions)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from node.outputs


def name_activations(model: ir.Model) -> None:
    """Call the node that makes a site's activation after the site, where it stands before its clamp."""
    for node in list(model.graph):
        site, separator, _ = (node.name or "").rpartition("/clamp")
        source = node.inputs[0] if node.inputs else None
        if not separator or source is None:
            continue
        producer = source.producer()
        if node.op_type != "Min" or producer is None or source.is_graph_output():
            continue
        if not (producer.name or "").endswith("/clamp"):
            producer.name = site
            source.name = f"{site}/activation"


def check_private(model: onnx.ModelProto) -> None:
    """Raise ParityError when a string of the file names a folder of this machine or a line of source."""
    folders = {
        str(folder) + "/"
        for folder in (Path.home(), Path.cwd(), Path(sys.prefix), Path(sysconfig.get_paths()["purelib"]))
        if len(str(folder)) > 1
    }
    for text in _strings(model):
        for sign in (*folders, '.py"', ".py'", "stack_trace"):
            if sign in text:
                raise ParityError(f"the file would hold the text {text[:120]!r}, which tells where it was made")


def _strings(message: onnx.ModelProto) -> Iterator[str]:
    """Names, documentation and metadata of the model; tensor contents are not text."""
    yield message.doc_string
    yield from (text for entry in message.metadata_props for text in (entry.key, entry.value))
    graph = message.graph
    yield from (graph.name, graph.doc_string)
    yield from (text for entry in graph.metadata_props for text in (entry.key, entry.value))
    for node in graph.node:
        yield from (node.name, node.doc_string, *node.input, *node.output)
        yield from (text for entry in node.metadata_props for text in (entry.key, entry.value))
        yield from (attribute.doc_string for attribute in node.attribute)
        yield from (attribute.s.decode(errors="replace") for attribute in node.attribute if attribute.s)
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield from (value.name, value.doc_string)
        yield from (text for entry in value.metadata_props for text in (entry.key, entry.value))
    for tensor in graph.initializer:
        yield from (tensor.name, tensor.doc_string)
