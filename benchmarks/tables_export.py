"""The export's tables: what each form costs, and whether it holds on each network."""

from collections.abc import Callable
from typing import Any

from benchmarks.results_file import read_results
from benchmarks.table_cells import NETWORKS, spread

_COLUMNS = {
    "`clip`, tensor": ("clip", "tensor", "fp32"),
    "`folded`, tensor": ("folded", "tensor", "fp32"),
    "`mul_clip`, channel": ("mul_clip", "channel", "fp32"),
    "`folded`, channel": ("folded", "channel", "fp32"),
    "`min`, neuron": ("min", "neuron", "fp32"),
    "fp16, tensor": ("auto", "tensor", "fp16"),
    "fp16, channel": ("auto", "channel", "fp16"),
    "fp16, neuron": ("auto", "neuron", "fp16"),
    "int8, channel": ("auto", "channel", "int8"),
    "int8, neuron": ("auto", "neuron", "int8"),
}


def forms() -> list[list[str]]:
    """By network and form the largest relative error (in fp16 the outputs' too), or in int8 the agreement; how many
    sites took the form."""
    rows = [["network", *_COLUMNS]]
    found = {(row["network"], row["form"], row["granularity"], row["precision"]): row for row in _rows("forms")}
    for network, name in NETWORKS.items():
        cells = [_outcome(found.get((network, *way)), way[0]) for way in _COLUMNS.values()]
        if any(cells):
            rows.append([name, *cells])
    return rows


def _outcome(row: dict[str, Any] | None, form: str) -> str:
    if row is None:
        return ""
    if "reason" in row:
        return "refused"
    held = f"{row['int8_agreement']:.1%}" if "int8_agreement" in row else f"{row['max_rel_error']:.0e}"
    if row["precision"] == "fp16" and "output_rel_error" in row:
        held += f", outputs {row['output_rel_error']:.0e}"
    sites = row["sites"]
    if form != "auto" and set(sites) != {form}:
        held += f" ({sites.get(form, 0)} of {sum(sites.values())} sites)"
    return held


SIGNS = {"gtsrb_vgg_badnets_target8": "BadNets patch", "gtsrb_vgg_trojan_wm_target2": "Trojan watermark"}


def noise() -> list[list[str]]:
    """int8 by network and maker: signal to noise of the logits, and the share of predictions that change."""
    found = {(row["network"], row["maker"]): row for row in _rows("noise")}
    makers = list(dict.fromkeys(maker for _, maker in found))
    rows = [["network", *makers]]
    for network, name in NETWORKS.items():
        cells = [found.get((network, maker)) for maker in makers]
        if any(cells):
            rows.append([name, *map(_noise, cells)])
    return rows


def _noise(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return "refused" if "reason" in row else f"{row['int8_snr_db']:.1f} dB, {row['changed']:.1%}"


def accuracy() -> list[list[str]]:
    """Backdoored networks, sanitised: accuracy and attack success in torch and from every file."""
    rows = [["network", "bounds per", "file", "accuracy", "attack success", "predictions as in torch", "largest error"]]
    for row in _rows("accuracy"):
        figures = [f"{row[figure]:.2%}" for figure in ("accuracy", "attack_success")]
        agreement = f"{row['agreement']:.2%}" if "agreement" in row else "–"
        error = f"{row['max_rel_error']:.0e}" if "max_rel_error" in row else "–"
        rows.append([SIGNS[row["network"]], row["granularity"], row["file"], *figures, agreement, error])
    return rows


def cost() -> list[list[str]]:
    """Time over float32 without clamps, in ONNX Runtime."""
    return _by_batch("cost", {"time over no clamps": lambda row: f"{row['ratio']:.2f}×"})


def int8() -> list[list[str]]:
    """int8 against int8 without clamps, and against float32 without clamps."""
    return _by_batch(
        "int8",
        {
            "time over int8 without clamps": lambda row: f"{row['int8_ratio']:.2f}×" if "int8_ratio" in row else "–",
            "faster than float32 without clamps": lambda row: f"{1 / row['ratio']:.1f}×",
        },
    )


def openvino() -> list[list[str]]:
    """The same in OpenVINO."""
    return _by_batch(
        "openvino",
        {
            "time over float32 without clamps": lambda row: f"{row['ratio']:.2f}×",
            "faster than that": lambda row: f"{1 / row['ratio']:.1f}×",
        },
    )


def _by_batch(part: str, figures: dict[str, Callable[[dict[str, Any]], str]]) -> list[list[str]]:
    measured = [row for row in _rows(part) if "median_ms" in row]
    batches = sorted({row["batch"] for row in measured})
    heads = [f"{head}, batch {batch}" for batch in batches for head in ("ms (p20 to p80)", *figures)]
    rows = [["precision", "form", "bounds per", *heads]]
    lines: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for row in measured:
        form = row["form"] if row["maker"] == "unit_fast" else f"{row['form']} ({row['maker']})"
        lines.setdefault((row["precision"], form, row["granularity"] or "–"), {})[row["batch"]] = row
    for line, by_batch in lines.items():
        cells = []
        for batch in batches:
            row = by_batch[batch]
            cells.append(spread(row))
            cells += [figure(row) for figure in figures.values()]
        rows.append([*line, *cells])
    return rows


def _rows(part: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_results(f"export_{part}")
    return found


TABLES = {
    "export_forms": forms,
    "export_accuracy": accuracy,
    "export_noise": noise,
    "export_cost": cost,
    "export_int8": int8,
    "export_openvino": openvino,
}
