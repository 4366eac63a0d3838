"""The ``clip`` form: y = f(x); z = clamp_bound(y, b)  ⇒  z = Clip(y, lowest, b), and after a Relu z = Clip(x, 0, b).

Clip takes scalars of rank 0 only; a vector passes the ONNX checker and fails when it runs, so this form is for one
bound a site. Both limits are given, as initializers: TensorRT's older parsers cannot do without. A Relu or a Clip in
front goes into the same node, as ONNX Runtime CPU and OpenVINO fuse one Clip into the convolution before it.
"""

import math

import numpy as np
import onnx_ir as ir

from unit_fast.export.forms.form import Clamp, replace_marker, scalar
from unit_fast.export.translate import SiteBound


def shape_refusal(shape: tuple[int, ...]) -> str | None:
    """Why bounds of that shape cannot be written as Clip; None where they can."""
    if math.prod(shape) == 1:
        return None
    return (
        f"its bound has the shape {shape}, and Clip takes one number a site; expected tensor granularity: use "
        'form="folded", "min" or "auto", or calibrate with granularity="tensor"'
    )


class ClipForm:
    """One Clip with scalar limits."""

    name = "clip"

    def refusal(self, marker: ir.Node, site: SiteBound) -> str | None:  # noqa: ARG002 - Form's signature
        """Refuses bounds of more than one value, and negative ones."""
        refusal = shape_refusal(site.bound.shape)
        if refusal is None and site.bound.item() < 0:
            return (
                f"its bound is {site.bound.item():g}, and runtimes differ on a Clip whose maximum lies below what the "
                'activation gives; use form="min" or "auto"'
            )
        return refusal

    def lower(self, marker: ir.Node, site: SiteBound) -> Clamp:
        """Clip(activation, lowest, bound), or one Clip that takes up the Relu or Clip before it."""
        source = marker.inputs[0]
        assert source is not None
        bound = site.bound.reshape(())
        merged = _before(source, bound)
        if merged is None:
            lower, upper = np.asarray(np.finfo(bound.dtype).min, bound.dtype), bound
            reason = "one bound for the site"
        else:
            activation, source, lower, upper = merged
            reason = f"one bound for the site; took up the {activation.op_type} before it"
        replace_marker(marker, "Clip", source, {"lower": lower, "upper": upper}, site.site)
        if merged is not None:
            graph = activation.graph
            assert graph is not None
            graph.remove(activation, safe=True)
        return Clamp(site.site, self.name, reason, "Clip", lower, upper)


def _before(source: ir.Value, bound: np.ndarray) -> tuple[ir.Node, ir.Value, np.ndarray, np.ndarray] | None:
    """The Relu or Clip that makes ``source`` for the marker alone: its node, input and limits joined with ``bound``."""
    node = source.producer()
    if node is None or node.domain or source.is_graph_output() or len(source.uses()) != 1:
        return None
    inner = node.inputs[0] if node.inputs else None
    # Where others read the input too, the file could not show that none of them reads the activation unclamped.
    if inner is None or inner.is_graph_output() or len(inner.uses()) != 1:
        return None
    if node.op_type == "Relu":
        return node, inner, np.zeros((), bound.dtype), bound
    if node.op_type == "Clip" and len(node.inputs) == 3:
        lower, upper = scalar(node.inputs[1]), scalar(node.inputs[2])
        if lower is None or upper is None or lower > bound or lower > upper:
            return None
        return node, inner, lower.astype(bound.dtype), np.asarray(np.minimum(upper.astype(bound.dtype), bound))
    return None
