"""ONNX graph ⇒ the boxes and lines worth drawing.

Weights and whatever is computed from weights alone are not drawn, nor is a DequantizeLinear behind a QuantizeLinear.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import TensorProto, helper, numpy_helper

from unit_fast.export.report import SiteReport

INPUT, OUTPUT = "input", "output"
_CLAMP = "/clamp"


@dataclass
class Box:
    """One box of the picture.

    Attributes:
        title: its first line: an operator with what tells it from others of its kind, or an input's or output's name.
        subtitle: its second line: the shape of what it gives, or the site that it clamps.
        kind: "input", "output", "node", or the form of the clamp that it is.
        details: what is shown when one points at it, a line each.
        sources: the boxes it reads, by number.
    """

    title: str
    subtitle: str
    kind: str
    details: list[str]
    sources: list[int] = field(default_factory=list)


def read_boxes(model: onnx.ModelProto, sites: Sequence[SiteReport]) -> list[Box]:
    """The boxes of ``model`` in the order in which they run.

    Args:
        model: its tensors may be left in a file beside it.
        sites: how each site was clamped; the clamp's node is called ``<site>/clamp``.
    """
    return _Reader(model, {site.site: site for site in sites}).boxes


class _Reader:
    def __init__(self, model: onnx.ModelProto, sites: Mapping[str, SiteReport]) -> None:
        graph = model.graph
        self.sites = sites
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.values = {value.name: value for value in (*graph.input, *graph.output, *graph.value_info)}
        self.fixed = set(self.constants)  # names of values that no input has a part in
        self.made: dict[str, int] = {}  # by value, the box that makes it
        self.quantised: set[int] = set()  # boxes that give integers which stand for floats
        self.boxes: list[Box] = []
        for value in graph.input:
            if value.name not in self.constants:
                self._add(Box(value.name, self._shape(value.name), INPUT, [self._type(value.name)]), [value.name])
        for node in graph.node:
            self._read(node)
        for value in graph.output:
            sources = [self.made[value.name]] if value.name in self.made else []
            self.boxes.append(Box(value.name, self._shape(value.name), OUTPUT, [self._type(value.name)], sources))

    def _add(self, box: Box, outputs: Sequence[str]) -> None:
        self.made |= dict.fromkeys(outputs, len(self.boxes))
        self.boxes.append(box)

    def _read(self, node: onnx.NodeProto) -> None:
        read = [name for name in node.input if name and name not in self.fixed]
        if not read:
            self.fixed |= set(node.output)
            return
        sources = list(dict.fromkeys(self.made[name] for name in read if name in self.made))
        if node.op_type == "DequantizeLinear" and sources[0] in self.quantised:
            self.made |= dict.fromkeys(node.output, sources[0])
            return
        site = self.sites.get(node.name.removesuffix(_CLAMP)) if node.name.endswith(_CLAMP) else None
        what = f"{node.op_type} {self._particulars(node)}".strip()
        details = [f"{node.op_type} {node.name}", *(self._type(name) for name in node.output if name)]
        details += [self._constant(name) for name in node.input if name in self.constants]
        if site is None:
            box = Box(what, self._shape(node.output[0]), "node", details, sources)
        else:
            box = Box(what, site.site, site.form, [f"clamps {site.site}: {site.reason}", *details], sources)
        if node.op_type == "QuantizeLinear" or (node.op_type == "Min" and sources[0] in self.quantised):
            self.quantised.add(len(self.boxes))
        self._add(box, node.output)

    def _particulars(self, node: onnx.NodeProto) -> str:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        weight = self._dims(node.input[1]) if len(node.input) > 1 else None
        if node.op_type in ("Conv", "ConvTranspose") and weight:
            groups = attributes.get("group", 1)
            window = "×".join(map(str, weight[2:]))
            stride = max(attributes.get("strides", [1]))
            return f"{window}{f' /{stride}' if stride > 1 else ''}{f' ×{groups} groups' if groups > 1 else ''}"
        if node.op_type in ("MaxPool", "AveragePool"):
            return "×".join(map(str, attributes["kernel_shape"]))
        if node.op_type in ("Gemm", "MatMul") and weight and node.input[1] in self.fixed:
            rows, columns = weight[-2:] if not attributes.get("transB") else weight[::-1]
            return f"{rows}→{columns}"
        return ""

    def _dims(self, name: str) -> list[int] | None:
        if name in self.constants:
            return list(self.constants[name].dims)
        value = self.values.get(name)
        dims = value.type.tensor_type.shape.dim if value else []
        return [dim.dim_value for dim in dims] if dims and all(dim.dim_value for dim in dims) else None

    def _shape(self, name: str) -> str:
        value = self.values.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return ""
        return "×".join(dim.dim_param or str(dim.dim_value or "?") for dim in value.type.tensor_type.shape.dim)

    def _type(self, name: str) -> str:
        value = self.values.get(name)
        dtype = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower() if value else "?"
        return f"→ {name}: {dtype} {self._shape(name)}".rstrip()

    def _constant(self, name: str) -> str:
        tensor = self.constants[name]
        dtype = TensorProto.DataType.Name(tensor.data_type).lower()
        shape = "×".join(map(str, tensor.dims)) or "scalar"
        if tensor.data_location == TensorProto.EXTERNAL:
            return f"{name}: {dtype} {shape}"
        array = numpy_helper.to_array(tensor)
        if not array.size or array.dtype.kind not in "fiu":
            return f"{name}: {dtype} {shape}"
        low, high = float(array.min()), float(array.max())
        return f"{name}: {dtype} {shape}, {f'{low:.4g}' if low == high else f'{low:.4g} to {high:.4g}'}"
