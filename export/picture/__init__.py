"""A picture of an exported graph with its clamps marked, drawn without any other program."""

from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from unit_fast.errors import DataError
from unit_fast.export.onnx_file import metadata_of, open_onnx
from unit_fast.export.picture.nodes import read_boxes
from unit_fast.export.picture.svg import draw, page
from unit_fast.export.report import SiteReport
from unit_fast.files import atomic_write

__all__ = ["ENDINGS", "draw_graph"]

ENDINGS = (".svg", ".html")


def draw_graph(model: str | PathLike[str], picture: str | PathLike[str], sites: Sequence[SiteReport]) -> Path:
    """Draw an exported file, its clamps coloured by their form; pointing at a box shows its shapes and constants.

    Args:
        model: the ONNX file.
        picture: the file to write, ``.svg`` or ``.html``.
        sites: ``ExportReport.sites``.

    Returns:
        ``picture``.

    Raises:
        DataError: ``picture`` has another ending, or ``model`` cannot be read.
        OutputError: ``picture`` cannot be written.
    """
    model, picture = Path(model), Path(picture)
    if picture.suffix not in ENDINGS:
        raise DataError(f"{picture}: a picture of the graph ends in {' or '.join(ENDINGS)}")
    proto = open_onnx(model)
    metadata = metadata_of(proto)
    boxes = read_boxes(proto, sites)
    clamps = sum(site.form != "none" for site in sites)
    opset = next((entry.version for entry in proto.opset_import if not entry.domain), "?")
    operators = Counter(node.op_type for node in proto.graph.node)
    title = (
        f"{model.name}: {clamps} clamp{'s' if clamps != 1 else ''} at {len(sites)} site{'s' if len(sites) != 1 else ''}"
    )
    subtitle = " · ".join(
        (
            metadata.get("unit_fast.precision", "fp32"),
            f"opset {opset}",
            f"{sum(operators.values())} nodes: " + ", ".join(f"{n} {op}" for op, n in operators.most_common(8)),
        )
    )
    text = draw(boxes, title, subtitle)
    if picture.suffix == ".html":
        text = page(text, title)
    return atomic_write(picture, lambda temporary: temporary.write_text(text, encoding="utf-8"))
