"""What a form is, and the graph edits they share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from unit_fast.export.errors import ExportError
from unit_fast.export.translate import SiteBound


@dataclass(frozen=True)
class Clamp:
    """One site's clamp as it stands in the ONNX graph; what the structure check holds the file to.

    Attributes:
        site: name of the site.
        form: the form it was written in; "none" where the bound is +inf and no clamp is needed.
        reason: why that form.
        op: operator of the clamp's node; None when there is none.
        lower: lower limit of a Clip; None for other operators.
        upper: upper limit of the node's result, for a Clip and a Min as stored in the file; None without a clamp.
        alpha: slope of a HardSigmoid; None for other operators.
        scale: the site's activation is ``scale`` × the node's result; broadcasts to one sample. None stands for 1.
        after: the constant that the node's result is multiplied by in the graph, where the form says so.
    """

    site: str
    form: str
    reason: str
    op: str | None
    lower: np.ndarray | None
    upper: np.ndarray | None
    alpha: float | None = None
    scale: np.ndarray | None = None
    after: np.ndarray | None = None


class Form(Protocol):
    """One way to write a clamp."""

    @property
    def name(self) -> str:
        """What users call it."""

    def refusal(self, marker: ir.Node, site: SiteBound) -> str | None:
        """Why this form cannot write the clamp of ``site``, and what to do; None when it can."""

    def lower(self, marker: ir.Node, site: SiteBound) -> Clamp:
        """Replace ``marker`` by the clamp of ``site``."""


def node_name(site: str) -> str:
    """Name of the node that clamps ``site``."""
    return f"{site}/clamp"


def output_name(site: str) -> str:
    """Name of the clamped activation of ``site``, unless it is an output of the model."""
    return f"{site}/clamped"


def replace_marker(
    marker: ir.Node,
    op: str,
    source: ir.Value,
    constants: Mapping[str, np.ndarray],
    site: str,
    attributes: Mapping[str, ir.Attr] | None = None,
) -> ir.Node:
    """Put a node ``op(source, *constants)`` in the marker's place; constants become initializers ``<site>/<key>``."""
    graph = marker.graph
    assert graph is not None
    old = marker.outputs[0]
    new = ir.Value(name=output_name(site), shape=old.shape, type=old.type)
    initializers = [_initializer(f"{site}/{key}", value) for key, value in constants.items()]
    for initializer in initializers:
        graph.register_initializer(initializer)
    node = ir.Node("", op, [source, *initializers], attributes or {}, outputs=[new], name=node_name(site))
    graph.insert_before(marker, node)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(marker, safe=True)
    return node


def insert_product(beside: ir.Node, value: ir.Value, factor: np.ndarray, name: str, *, before: bool) -> ir.Value:
    """Put ``value × factor`` before or after a node; after it, the product takes over the readers of ``value``."""
    graph = beside.graph
    assert graph is not None
    constant = _initializer(f"{name}/factor", factor)
    graph.register_initializer(constant)
    product = ir.Value(name=name, shape=value.shape, type=value.type)
    if not before:
        value.replace_all_uses_with(product, replace_graph_outputs=True)
    node = ir.Node("", "Mul", [value, constant], outputs=[product], name=name)
    (graph.insert_before if before else graph.insert_after)(beside, node)
    return product


def sole_producer(value: ir.Value | None, op: str) -> ir.Node | None:
    """The node of operator ``op`` that makes ``value``, when one node alone reads it; else None."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.domain or node.op_type != op:
        return None
    return None if value.is_graph_output() or len(value.uses()) != 1 else node


def bypass(marker: ir.Node) -> None:
    """Take the marker out; what it marked stays unclamped."""
    graph = marker.graph
    source = marker.inputs[0]
    assert graph is not None
    assert source is not None
    marker.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(marker, safe=True)


def _initializer(name: str, value: np.ndarray) -> ir.Value:
    tensor = ir.tensor(value, name=name)
    return ir.Value(name=name, shape=ir.Shape(value.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)


def scalar(value: ir.Value | None) -> np.ndarray | None:
    """The constant that ``value`` holds, when it is one number."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return value.const_value.numpy().reshape(())


def check_values(site: str, bound: np.ndarray) -> None:
    """Raise ExportError when a bound is NaN or −inf."""
    if np.isnan(bound).any():
        raise ExportError(
            f"the bound of site {site} holds {int(np.isnan(bound).sum())} NaN of {bound.size} values; runtimes ignore "
            "such a clamp: calibrate again"
        )
    if np.isneginf(bound).any():
        raise ExportError(f"the bound of site {site} holds −inf, which leaves no activation; calibrate again")
