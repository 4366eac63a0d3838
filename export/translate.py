"""Sanitised graph ⇒ ONNX graph in which every clamp is one opaque marker node.

The exporter's optimiser merges equal constants and neighbouring Min, Max and Clip nodes; after that nothing tells
which site a clamp belongs to. So clamps go through it as ``unit_fast.export::Site`` nodes that it cannot look into,
and forms replace those afterwards.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from unit_fast.export.errors import ExportError
from unit_fast.export.flat import FlatGraph
from unit_fast.fusion.rewrite import constant, copy_graph, tidy
from unit_fast.sites import clamp_bound

MARKER_DOMAIN = "unit_fast.export"
MARKER = "Site"
OPSETS = range(18, 25)

_aten = torch.ops.aten


@dataclass(frozen=True)
class SiteBound:
    """The bound of one marker node.

    Attributes:
        site: name of the site.
        bound: in the dtype of the activation; broadcasts to one sample.
        zero: whether it was folded and is 0 somewhere, where what is clamped is 0 and has to stay so.
    """

    site: str
    bound: np.ndarray
    zero: bool = False


def translate(graph: FlatGraph, opset: int) -> tuple[ir.Model, tuple[SiteBound, ...]]:
    """Translate ``graph`` to ONNX with markers for clamps.

    Returns:
        The model, and by the marker's ``index`` attribute the bound that belongs there.

    Raises:
        ExportError: an operator has no ONNX counterpart at this opset, or the exporter gave another opset.
    """
    marked, bounds = _mark_sites(graph.module)
    dynamic_shapes = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in graph.dynamic)
    with _quiet(), torch.no_grad():
        try:
            # A dimension of 1 in the example would be taken for a constant.
            program = torch.export.export(marked, graph.batch(2), dynamic_shapes=dynamic_shapes)
            exported = torch.onnx.export(program, (), dynamo=True, opset_version=opset, verbose=False)
        except Exception as error:
            raise ExportError(
                f"the model has no translation to ONNX at opset {opset}: {_root_cause(error)}; replace that operation "
                f"or try another opset ({OPSETS.start} to {OPSETS.stop - 1})"
            ) from error
    if exported is None:
        raise ExportError("torch.onnx.export returned nothing; is dynamo=True supported by this torch?")
    model: ir.Model = exported.model
    found = model.opset_imports.get("")
    if found != opset:
        raise ExportError(f"opset {opset} was asked for, the exporter gave {found}; choose one it can reach")
    return model, bounds


def marker_nodes(model: ir.Model) -> list[tuple[int, ir.Node]]:
    """The marker nodes of ``model`` with their indices, in the order in which they run."""
    return [
        (node.attributes["index"].as_int(), node)
        for node in model.graph
        if node.domain == MARKER_DOMAIN and node.op_type == MARKER
    ]


def mark_site(x: Tensor, index: int) -> Tensor:
    """Stands for the clamp number ``index`` while the graph is translated."""
    return torch.onnx.ops.symbolic(
        f"{MARKER_DOMAIN}::{MARKER}", (x,), {"index": index}, dtype=x.dtype, shape=x.shape, version=1
    )


def _mark_sites(module: fx.GraphModule) -> tuple[fx.GraphModule, tuple[SiteBound, ...]]:
    marked = copy_graph(module)
    bounds: list[SiteBound] = []
    for node in list(marked.graph.nodes):
        if node.target is _aten.clamp.default:
            _unify_limits(node)
        if node.target is _aten.scaled_dot_product_attention.default and _attends_otherwise(node):
            node.target = _attend
        if node.target is not clamp_bound:
            continue
        bound = constant(marked, node.args[1])
        assert bound is not None
        dtype = node.meta["val"].dtype
        with marked.graph.inserting_before(node):
            marker = marked.graph.call_function(mark_site, (node.args[0], len(bounds)))
        bounds.append(SiteBound(node.meta["site"], bound.detach().cpu().to(dtype).contiguous().numpy()))
        node.replace_all_uses_with(marker)
        marked.graph.erase_node(node)
    tidy(marked)
    return marked, tuple(bounds)


def _unify_limits(node: fx.Node) -> None:
    # clamp(x, 0, 4.0), an int and a float, has no translation in torch 2.13; clamp(x, 0.0, 4.0) has.
    value = node.meta.get("val")
    if isinstance(value, Tensor) and value.is_floating_point():
        node.args = tuple(float(limit) if isinstance(limit, int) else limit for limit in node.args)
        node.kwargs = {name: float(limit) if isinstance(limit, int) else limit for name, limit in node.kwargs.items()}


def _attends_otherwise(node: fx.Node) -> bool:
    """Over other than four dimensions, for which alone torch 2.13 has a translation, and without a mask."""
    attended = node.meta.get("val")
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    return mask is None and isinstance(attended, Tensor) and attended.ndim in (3, 5, 6)


def _attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Attention over (N, …, L, E) with what is between gathered to one dimension."""
    between = query.shape[1:-2]

    def gathered(x: Tensor) -> Tensor:
        return x.flatten(1, -3) if between else x.unsqueeze(1)

    attended = F.scaled_dot_product_attention(gathered(query), gathered(key), gathered(value), *args, **kwargs)
    return torch.unflatten(attended, 1, between) if between else attended.squeeze(1)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that are not installed and on its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
