"""The clamp of a folded site as y = HardSigmoid(z) = max(0, min(1, α·z + β)), in place of Relu and Clip(0, 1).

With α = 1 and β = 0 it is the same function. β is 1e-30 instead, since OpenVINO 2026.4 takes a β of 0 for none given
and computes with 0.5; what lies within 1e-23 of 0 is off by 1e-30 for it, all else is the same to the bit.

ONNX Runtime's CPU provider fuses it where it leaves a Clip alone: behind the sum of a convolution and a skip, where a
Clip costs two changes of memory layout besides itself.
"""

import numpy as np
import onnx_ir as ir

from unit_fast.export.forms.form import Clamp, replace_marker, scalar, sole_producer
from unit_fast.export.translate import SiteBound

BETA = float(np.float32(1e-30))


class HardSigmoidForm:
    """One HardSigmoid, for sites whose bound is 1 after folding."""

    name = "hard_sigmoid"

    def refusal(self, marker: ir.Node, site: SiteBound) -> str | None:
        """Refuses every bound but the number 1, what has to stay 0, dtypes but float32, and all but a sum's Relu."""
        if site.bound.size != 1 or site.bound.item() != 1:
            return f"its bound is {site.bound.reshape(-1)[:3]}, and HardSigmoid saturates at 1"
        if site.bound.dtype != np.float32:
            return f"ONNX Runtime fuses nothing in {site.bound.dtype}"
        if site.zero:
            return f"a bound is 0, and HardSigmoid gives {BETA:.0e} for 0"
        relu = sole_producer(marker.inputs[0], "Relu")
        if relu is None or not _is_sum(relu.inputs[0]):
            return "it follows no Relu of a sum, and a Clip is fused everywhere else"
        return None

    def lower(self, marker: ir.Node, site: SiteBound) -> Clamp:
        """HardSigmoid in place of Relu and of a multiplication by one number before it."""
        relu = sole_producer(marker.inputs[0], "Relu")
        assert relu is not None
        source = relu.inputs[0]
        removed = [relu]
        alpha = 1.0
        product = sole_producer(source, "Mul")
        if product is not None:
            for factor, value in (product.inputs, product.inputs[::-1]):
                number = scalar(factor)
                if number is not None:
                    source, alpha = value, float(number.astype(np.float32))
                    removed.append(product)
                    break
        assert source is not None
        attributes = {"alpha": ir.AttrFloat32("alpha", alpha), "beta": ir.AttrFloat32("beta", BETA)}
        replace_marker(marker, "HardSigmoid", source, {}, site.site, attributes)
        for node in removed:
            assert node.graph is not None
            node.graph.remove(node, safe=True)
        one = np.ones((), site.bound.dtype)
        return Clamp(site.site, self.name, "HardSigmoid is fused behind a sum", "HardSigmoid", None, one, alpha=alpha)


def _is_sum(value: ir.Value | None) -> bool:
    """Whether ``value`` is a sum, or a sum times a constant."""
    product = sole_producer(value, "Mul")
    if product is not None:
        value = next((other for other in product.inputs if other is not None and other.const_value is None), None)
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Add":
        return False
    return all(item is not None and item.const_value is None for item in node.inputs)
