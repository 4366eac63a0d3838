"""The ``min`` form: y = f(x); z = clamp_bound(y, b)  ⇒  y = f(x); z = Min(y, b).

Min broadcasts a tensor from opset 8 on, so this form takes every granularity and every activation. Runtimes do not
fuse it into the convolution: it costs a pass over memory.
"""

import onnx_ir as ir

from unit_fast.export.forms.form import Clamp, replace_marker
from unit_fast.export.translate import SiteBound


class MinForm:
    """Min with a constant of the bound's shape."""

    name = "min"

    def refusal(self, marker: ir.Node, site: SiteBound) -> str | None:  # noqa: ARG002 - Form's signature
        """Never refuses."""
        return None

    def lower(self, marker: ir.Node, site: SiteBound) -> Clamp:
        """Min(activation, bound)."""
        source = marker.inputs[0]
        assert source is not None
        replace_marker(marker, "Min", source, {"bound": site.bound}, site.site)
        return Clamp(site.site, self.name, "Min takes any granularity", "Min", None, site.bound)
