"""The ``mul_clip`` form: z = clamp_bound(relu(x), b)  ⇒  z = Clip(x · 1/b, 0, 1) · b, for bounds by channel.

Weights stay as they are. OpenVINO fuses all three nodes into the convolution before them, ONNX Runtime takes the first
into its weights and runs the last as a layer of its own.
"""

import numpy as np
import onnx_ir as ir

from unit_fast.export.forms.form import Clamp, insert_product, replace_marker, sole_producer
from unit_fast.export.translate import SiteBound

# By dtype, the bounds that can be divided by: 1 / b must be finite and keep its digits. Where the activation can be
# negative, so must be what it is divided to: −1e26 / 1e-12 still is in float32.
_RANGES = {"float32": (1e-30, 1e30), "float16": (1e-3, 1e3)}
_SIGNED = {"float32": (1e-12, 1e30), "float16": (1.0, 1e3)}


class MulClipForm:
    """Mul, Clip(·, 1) and Mul, with constants in the bound's shape."""

    name = "mul_clip"

    def refusal(self, marker: ir.Node, site: SiteBound) -> str | None:
        """Refuses bounds that cannot be divided by, and 0 after an activation that can be negative."""
        bound = site.bound
        if np.any(bound < 0) or np.any(np.isposinf(bound)):
            return "a bound is negative or +inf, and cannot be divided by"
        signed = sole_producer(marker.inputs[0], "Relu") is None
        smallest, largest = (_SIGNED if signed else _RANGES)[bound.dtype.name]
        if np.any((bound > 0) & ((bound < smallest) | (bound > largest))):
            return f"a bound lies outside {smallest:g} to {largest:g}, and cannot be divided by"
        if np.any(bound == 0) and signed:
            return "a bound is 0, and its activation can be negative"
        return None

    def lower(self, marker: ir.Node, site: SiteBound) -> Clamp:
        """Mul(1/b), Clip, Mul(b); a Relu before them is the Clip's lower limit."""
        graph = marker.graph
        source = marker.inputs[0]
        assert graph is not None
        assert source is not None
        bound = site.bound
        relu = sole_producer(source, "Relu")
        lower = np.zeros((), bound.dtype)
        if relu is None:
            lower = np.asarray(np.finfo(bound.dtype).min, bound.dtype)
        else:
            source = relu.inputs[0]
            assert source is not None
        divisor = np.where(bound == 0, 0, 1 / np.where(bound == 0, 1, bound)).astype(bound.dtype)
        divided = insert_product(marker, source, divisor, f"{site.site}/divided", before=True)
        one = np.ones((), bound.dtype)
        clip = replace_marker(marker, "Clip", divided, {"lower": lower, "upper": one}, site.site)
        if relu is not None:
            graph.remove(relu, safe=True)
        insert_product(clip, clip.outputs[0], bound, f"{site.site}/multiplied", before=False)
        return Clamp(
            site.site,
            self.name,
            "Mul, Clip and Mul take bounds by channel",
            "Clip",
            lower,
            one,
            scale=bound,
            after=bound,
        )
