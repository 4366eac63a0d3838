"""Forms: the ways a clamp can be written in ONNX, and the choice between them.

A form is a module of this package with a class that follows :class:`Form`; listing it in ``FORMS`` makes it available.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from unit_fast.export.errors import ExportError
from unit_fast.export.forms.clip import ClipForm
from unit_fast.export.forms.form import Clamp, Form, bypass, check_values
from unit_fast.export.forms.minimum import MinForm
from unit_fast.export.translate import MARKER_DOMAIN, SiteBound, marker_nodes

__all__ = ["AUTO", "FORMS", "Clamp", "Form", "check_form", "lower"]

AUTO = "auto"
FORMS: dict[str, Form] = {form.name: form for form in (ClipForm(), MinForm())}
# What "auto" tries, in this order. Clip first: runtimes fuse it into the convolution, Min they do not.
_PREFERENCE = ("clip", "min")


def check_form(form: str) -> None:
    """Raise ExportError unless ``form`` is one there is."""
    if form != AUTO and form not in FORMS:
        raise ExportError(f"form={form!r} is unknown; the forms are: {', '.join([AUTO, *FORMS])}")


def lower(model: ir.Model, bounds: Sequence[SiteBound], form: str) -> tuple[Clamp, ...]:
    """Replace every marker of ``model`` by a clamp in the form asked for, in place.

    Returns:
        What was put where, by site, in the order in which they run.

    Raises:
        ExportError: ``form`` is unknown or cannot express a clamp, named with its site and the reason; or a bound is
            NaN or −inf.
    """
    check_form(form)
    markers = marker_nodes(model)
    clamps: list[Clamp] = []
    for index, marker in markers:
        site = bounds[index]
        check_values(site.site, site.bound)
        if np.all(np.isposinf(site.bound)):
            bypass(marker)
            clamps.append(Clamp(site.site, "none", "the bound is +inf", None, None, None))
            continue
        chosen = _choose(marker, site) if form == AUTO else FORMS[form]
        reason = chosen.refusal(marker, site)
        if reason is not None:
            raise ExportError(f"form={form!r} cannot express the clamp of site {site.site}: {reason}")
        clamps.append(chosen.lower(marker, site))
    model.graph.opset_imports.pop(MARKER_DOMAIN, None)
    return tuple(clamps)


def _choose(marker: ir.Node, site: SiteBound) -> Form:
    for name in _PREFERENCE:
        if FORMS[name].refusal(marker, site) is None:
            return FORMS[name]
    raise ExportError(f"no form can express the clamp of site {site.site}")
