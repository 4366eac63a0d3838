"""Which form for which runtime: the table that ``form="auto"`` reads, with the reason of every line.

Times are those of ResNet-18 at 32², against the same net without clamps; docs/export.md says how they were taken.
"""

from dataclasses import dataclass

from unit_fast.bounds import Granularity
from unit_fast.export.errors import ExportError

AUTO = "auto"
_RELU6 = 6.0


@dataclass(frozen=True)
class Line:
    """One line of the table: forms by preference, which sites are folded first, and why."""

    forms: tuple[str, ...]
    reason: str
    fold: str = "none"


_MIN = Line(("min",), "no other form takes bounds by neuron")
_CLIP = Line(("clip", "min"), "every runtime fuses one scalar Clip into the layer before it")

TARGETS: dict[str, dict[Granularity, Line]] = {
    "onnxruntime": {
        "tensor": Line(
            ("clip", "min"), "a Clip is fused but behind a sum, where a HardSigmoid is (1.02 for 1.04)", "sums"
        ),
        "channel": Line(("min",), "Clip and HardSigmoid are fused (1.04), a Min costs two reorders (1.10)", "all"),
        "neuron": _MIN,
    },
    "openvino": {
        "tensor": _CLIP,
        "channel": Line(("mul_clip", "min"), "Mul, Clip and Mul are fused, behind sums too; weights stay as they are"),
        "neuron": _MIN,
    },
    "tensorrt": {
        "tensor": _CLIP,
        "channel": Line(("min",), "a Clip with constant limits is an activation layer; not measured", "all"),
        "neuron": _MIN,
    },
    "tflite": {
        "tensor": Line(("clip", "min"), "Clip(0, 6) becomes a fused RELU6, any other one clip_by_value", "all"),
        "channel": Line(("min",), "Clip(0, 6) becomes a fused RELU6, Min an operator of its own", "all"),
        "neuron": _MIN,
    },
    "ncnn": {
        "tensor": _CLIP,
        "channel": Line(("min",), "Clip is fused into the convolution, Min is not", "all"),
        "neuron": _MIN,
    },
    "generic": {
        "tensor": _CLIP,
        "channel": Line(("min",), "one scalar Clip a site, which every runtime has and most fuse", "all"),
        "neuron": _MIN,
    },
}
# A form asked for by name. Clip has nothing to fall back to: it was asked for because nothing else will do.
_NAMED = {
    "clip": Line(("clip",), ""),
    "min": Line(("min",), ""),
    "mul_clip": Line(("mul_clip", "min"), ""),
    "folded": Line(("min",), "", "all"),
}
NAMES = (AUTO, *_NAMED)
# One node that reads the activation as it is, which the file then reads once more.
INSPECTED = ("clip", "min")


@dataclass(frozen=True)
class Choice:
    """How clamps are to be written.

    Attributes:
        name: the form that was asked for.
        forms: tried in this order at every site that is not folded.
        fold: which sites are folded: "all" that can be, those behind "sums", or "none".
        folded_as: how the clamp of a folded site is written, tried in this order.
        limit: the bound of folded sites.
        reason: why, where "auto" chose.
        rescale: whether sums may be multiplied so that the sites behind them fold.
        divisors: the smallest and the largest number that bounds are folded by.
        only: names of the sites that may be folded; all when None.
    """

    name: str
    forms: tuple[str, ...]
    fold: str
    folded_as: tuple[str, ...] = ("clip",)
    limit: float = 1.0
    reason: str = ""
    rescale: bool = True
    divisors: tuple[float, float] = (1e-30, 1e30)
    only: frozenset[str] | None = None


def check_choice(form: str, target: str) -> None:
    """Raise ExportError unless there is such a form, and such a target."""
    if form not in NAMES:
        raise ExportError(f"form={form!r} is unknown; the forms are: {', '.join(NAMES)}")
    if target not in TARGETS:
        raise ExportError(f"target={target!r} is unknown; the targets are: {', '.join(TARGETS)}")


def choose(form: str, target: str, granularity: Granularity, inspect: bool = False) -> Choice:
    """How clamps are written in ``form`` for ``target``; with ``inspect``, of those forms that leave activations alone.

    Raises:
        ExportError: there is no such form or target.
    """
    check_choice(form, target)
    line = TARGETS[target][granularity] if form == AUTO else _NAMED[form]
    if inspect:
        forms = tuple(name for name in line.forms if name in INSPECTED)
        line = Line(
            forms, "the activation is read before its clamp too, which then is not fused" if line.reason else ""
        )
    return Choice(
        form,
        line.forms,
        line.fold,
        ("hard_sigmoid", "clip") if target == "onnxruntime" else ("clip",),
        _RELU6 if target == "tflite" else 1.0,
        line.reason,
    )
