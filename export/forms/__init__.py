"""Forms: the ways a clamp can be written in ONNX, and the choice between them.

A form is a module of this package with a class that follows :class:`Form`; listing it in ``FORMS`` makes it available,
a line of ``choice.py`` makes it chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from unit_fast.export.errors import ExportError
from unit_fast.export.forms.choice import TARGETS, Choice, check_choice, choose
from unit_fast.export.forms.clip import ClipForm
from unit_fast.export.forms.form import Clamp, Form, bypass, check_values
from unit_fast.export.forms.hard_sigmoid import HardSigmoidForm
from unit_fast.export.forms.minimum import MinForm
from unit_fast.export.forms.mul_clip import MulClipForm
from unit_fast.export.translate import MARKER_DOMAIN, SiteBound, marker_nodes

if TYPE_CHECKING:
    from unit_fast.export.folding import SiteFold

__all__ = ["FORMS", "TARGETS", "Choice", "Clamp", "Form", "check_choice", "choose", "lower"]

FORMS: dict[str, Form] = {form.name: form for form in (ClipForm(), MinForm(), MulClipForm(), HardSigmoidForm())}


def lower(
    model: ir.Model, bounds: Sequence[SiteBound], choice: Choice, folds: "Mapping[str, SiteFold] | None" = None
) -> tuple[Clamp, ...]:
    """Replace every marker of ``model`` by a clamp in the form chosen, in place.

    Args:
        model: with its markers.
        bounds: of the markers; of a folded graph, what it has now.
        choice: from :func:`choose`.
        folds: what folding did to the sites, when it ran.

    Returns:
        What was put where, by site, in the order in which they run.

    Raises:
        ExportError: no form of ``choice`` can express a clamp, named with its site and the reason; or a bound is NaN
            or −inf.
    """
    clamps: list[Clamp] = []
    for index, marker in marker_nodes(model):
        site = bounds[index]
        check_values(site.site, site.bound)
        fold = (folds or {}).get(site.site)
        if np.all(np.isposinf(site.bound)):
            bypass(marker)
            clamps.append(Clamp(site.site, "none", "the bound is +inf", None, None, None))
        elif fold is None:
            clamps.append(_write(marker, site, choice.forms, choice.name))
        else:
            clamps.append(_write_scaled(marker, site, choice, fold))
    model.graph.opset_imports.pop(MARKER_DOMAIN, None)
    return tuple(clamps)


def _write(marker: ir.Node, site: SiteBound, forms: Sequence[str], asked: str) -> Clamp:
    """The clamp of a site in the first of ``forms`` that can express it."""
    refusals: list[str] = []
    for name in forms:
        reason = FORMS[name].refusal(marker, site)
        if reason is None:
            clamp = FORMS[name].lower(marker, site)
            return replace(clamp, reason="; ".join([clamp.reason, *refusals]))
        refusals.append(f"no {name}: {reason}")
    raise ExportError(f"form={asked!r} cannot express the clamp of site {site.site}: {reason}")


def _write_scaled(marker: ir.Node, site: SiteBound, choice: Choice, fold: "SiteFold") -> Clamp:
    """The clamp of a site of a folded graph, which may be folded itself or lie in a scaled stream."""
    site = replace(site, zero=fold.zero)
    clamp = _write(marker, site, choice.folded_as if fold.folded else choice.forms, choice.name)
    form = "folded" if fold.folded else clamp.form
    reason = fold.reason if fold.folded else f"{clamp.reason}; not folded: {fold.reason}"
    scale = clamp.scale
    if fold.scale is not None:
        scale = fold.scale.numpy() * (1.0 if scale is None else scale)
    return replace(clamp, form=form, reason=reason, scale=scale)
