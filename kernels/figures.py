"""Writes what ``inspection`` found into the tables of a document.

``python -m unit_fast.kernels.figures docs/kernels.md sm_80.json sm_90.json sm_100.json`` replaces what stands between
the two markers; everything else in the document is left as it is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
HEAD = (
    "| kernel | configuration | epilogue | dtype | registers | spills (B) | shared (KiB) | products | loads |\n"
    "|---|---|---|---|---|---|---|---|---|\n"
)


def row_of(case: dict[str, Any]) -> str:
    """One compilation as a line of the table."""
    products = f"{case['wgmma']} wgmma" if case["wgmma"] else f"{case['mma']} mma" if case["mma"] else "–"
    loads = f"{case['tma']} TMA" if case["tma"] else f"{case['cp_async']} cp.async" if case["cp_async"] else "–"
    return (
        f"| {case['kernel']} | {case['config']} | {case['epilogue']} | {case['dtype']} | {case['registers']} | "
        f"{case['spills']} | {case['shared'] / 1024:.1f} | {products} | {loads} |"
    )


def render(results: list[dict[str, Any]]) -> str:
    """The tables, one a target."""
    parts = []
    for result in sorted(results, key=lambda r: -r["target"]):
        lines = "\n".join(row_of(case) for case in result["cases"])
        parts.append(f"### sm_{result['target']}, Triton {result['triton']}\n\n{HEAD}{lines}\n")
    return "\n".join(parts)


def replace_tables(document: str, tables: str) -> str:
    """``document`` with ``tables`` between the markers; ValueError if it has none."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the document has no {BEGIN} … {END} to write the tables into")
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def main() -> None:
    """Replace the tables of a document by the figures of the given JSON files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("document", type=Path)
    parser.add_argument("figures", type=Path, nargs="+", help="what the inspection wrote, a file a target")
    options = parser.parse_args()
    results = [json.loads(path.read_text()) for path in options.figures]
    text = replace_tables(options.document.read_text(encoding="utf-8"), render(results))
    temporary = options.document.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(options.document)


if __name__ == "__main__":
    main()
