"""Tables from the results, put where a document asks for them; ``python -m benchmarks.report`` fills them.

A document marks the place with ``<!-- table: NAME -->`` and ``<!-- end -->``, that of a picture of ``benchmarks.plots``
with ``<!-- picture: NAME -->``. Where the result file is not there, the table says so and no picture is shown. A test
holds the documents to the results.
"""

import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import tables_export, tables_layers, tables_runtime, tables_scaling, tables_zoo
from benchmarks.plots import IMAGES, PICTURES
from benchmarks.results_file import NotMeasured, read_results
from unit_fast.files import atomic_write

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "docs" / "calibration.md",
    ROOT / "docs" / "export.md",
    ROOT / "docs" / "networks.md",
    ROOT / "docs" / "performance.md",
    ROOT / "docs" / "runtime.md",
)
NETWORKS = {
    "gtsrb_vgg_badnets_target8": "VGG, traffic signs, white patch (BadNets)",
    "gtsrb_vgg_trojan_wm_target2": "VGG, traffic signs, watermark (Trojan)",
    "cifar10_resnet20_clean": "ResNet-20, CIFAR-10, no backdoor",
}
_MARKED = re.compile(r"(<!-- (table|picture): (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def effect() -> list[list[str]]:
    """Accuracy and attack success before and after: the median over seeds, and the range where there are several."""
    rows = [["network, as its maker or attacker left it", "bounds per", "accuracy, %", "attack success, %"]]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in read_results("calibration_effect"):
        groups[row["model"], row["granularity"]].append(row)
    for name, network in NETWORKS.items():
        for granularity in ("neuron", "channel", "tensor"):
            runs = groups.get((name, granularity), [])
            if runs:
                rows.append([network, granularity, *_changes(runs)])
    return rows


def cost() -> list[list[str]]:
    """Seconds against the published search."""
    rounds = read_results("calibration_time")
    ours, theirs, ratios = ([entry[key] for entry in rounds] for key in ("ours_seconds", "published_seconds", "ratio"))
    return [
        ["calibration of the traffic sign VGG, 1,935 images, bounds per neuron", "as published", "unit_fast"],
        [
            f"seconds, median of {len(rounds)} runs of each in turn",
            f"{statistics.median(theirs):,.0f}",
            f"{statistics.median(ours):,.0f} ({statistics.median(ratios):.0f}× faster; {min(ratios):.0f}× to "
            f"{max(ratios):.0f}×)",
        ],
    ]


def published() -> list[list[str]]:
    """What the published search leaves, beside the default recipe with the same seed."""
    ours = {(row["model"], row["granularity"]): row for row in read_results("calibration_effect") if row["seed"] == 0}
    heads = [
        "accuracy, as published",
        "accuracy, unit_fast",
        "attack success, as published",
        "attack success, unit_fast",
    ]
    rows = [["network", "bounds per", *heads]]
    for theirs in read_results("calibration_published"):
        both = (theirs, ours[theirs["model"], theirs["granularity"]])
        figures = [f"{100 * row[figure][1]:.1f}" for figure in ("accuracy", "attack_success") for row in both]
        rows.append([NETWORKS[theirs["model"]], theirs["granularity"], *figures])
    return rows


TRIGGERS = {
    "patch": "white patch of 3×3",
    "watermark": "watermark, added",
    "blend": "photograph, a fifth blended in",
    "sinusoid": "faint stripes (SIG)",
}


def attacks() -> list[list[str]]:
    """Networks that were backdoored here: what each way leaves, and how well the excess tells triggered samples."""
    ways = {
        "default": ("calibration_attacks", 0.03),
        "tolerance 0.1": ("calibration_attacks", 0.1),
        "accuracy held": ("calibration_attacks_spent", 0.03),
        "accuracy held, 0.1": ("calibration_attacks_spent", 0.1),
        "as published": ("calibration_attacks_published", 0.03),
    }
    rows = [["trigger", "bounds", "accuracy, %", "attack success, %", "AUROC of the excess"]]
    for trigger, name in TRIGGERS.items():
        for way, (results, tolerance) in ways.items():
            runs = [row for row in read_results(results) if row["trigger"] == trigger and row["tolerance"] == tolerance]
            rows.append([name, way, *_changes(runs), f"{runs[0]['auroc']:.3f}"])
    return rows


def spent() -> list[list[str]]:
    """What the search that spends its tolerance leaves of the networks in :func:`effect`."""
    rows = [["network", "tolerance", "accuracy, %", "attack success, %"]]
    found = read_results("calibration_spent")
    rows += [[NETWORKS[row["model"]], f"{row['tolerance']:g}", *_changes([row])] for row in found]
    return rows


TABLES: dict[str, Callable[[], list[list[str]]]] = {
    "effect": effect,
    "cost": cost,
    "published": published,
    "attacks": attacks,
    "spent": spent,
    **tables_export.TABLES,
    **tables_layers.TABLES,
    **tables_scaling.TABLES,
    **tables_runtime.TABLES,
    **tables_zoo.TABLES,
}


def _changes(runs: list[dict[str, Any]]) -> list[str]:
    """Of accuracy and attack success, which a network without a backdoor does not have."""
    return [_change(runs, figure) if figure in runs[0] else "–" for figure in ("accuracy", "attack_success")]


def _change(runs: list[dict[str, Any]], figure: str) -> str:
    before = 100 * runs[0][figure][0]
    after = [100 * run[figure][1] for run in runs]
    spread = f" ({min(after):.1f} to {max(after):.1f})" if len(after) > 1 else ""
    return f"{before:.1f} → **{statistics.median(after):.1f}**{spread}"


def _markdown(rows: Iterable[list[str]]) -> str:
    header, *body = rows
    return "".join("| " + " | ".join(row) + " |\n" for row in (header, ["---"] * len(header), *body))


def _table(name: str) -> str:
    try:
        return _markdown(TABLES[name]())
    except NotMeasured as missing:
        return _markdown([["not measured yet"], [f"there is no `{missing}`"]])


def _picture(name: str, document: Path) -> str:
    picture, file = PICTURES[name], IMAGES / f"{name}.svg"
    try:
        picture.draw()
    except NotMeasured:
        return ""
    return f"![{picture.shows}]({file.relative_to(document.parent)})\n"


def filled(document: Path) -> str:
    """The text of ``document`` with every marked table and picture as the results have it."""

    def content(match: re.Match[str]) -> str:
        inside = _table(match[3]) if match[2] == "table" else _picture(match[3], document)
        return match[1] + inside + match[4]

    return _MARKED.sub(content, document.read_text())


def pictures_of(text: str) -> list[str]:
    """The files of the pictures that a document shows, as it names them."""
    return re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)


def main() -> None:
    """Fill all documents."""
    for document in DOCUMENTS:
        atomic_write(document, partial(Path.write_text, data=filled(document)))
