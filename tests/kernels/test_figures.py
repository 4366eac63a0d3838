"""The document's tables: written between their markers, and complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit_fast.kernels.configs import CONV2D, LINEAR, STEM
from unit_fast.kernels.figures import BEGIN, END, render, replace_tables

DOCUMENT = Path(__file__).parents[2] / "docs" / "kernels.md"
CASE = {
    "kernel": "linear",
    "config": "tma 1x2x3 w4 s5",
    "epilogue": "gelu",
    "dtype": "fp16",
    "registers": 99,
    "spills": 0,
}
CASE |= {"shared": 2048, "wgmma": 4, "mma": 0, "cp_async": 0, "tma": 6}


def test_tables_replace_what_stands_between_the_markers():
    tables = render([{"target": 90, "triton": "3.9.0", "cases": [CASE]}])
    text = replace_tables(f"before\n{BEGIN}\nold\n{END}\nafter\n", tables)
    assert "| linear | tma 1x2x3 w4 s5 | gelu | fp16 | 99 | 0 | 2.0 | 4 wgmma | 6 TMA |" in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert replace_tables(text, tables) == text


def test_a_document_without_markers_is_refused():
    with pytest.raises(ValueError, match="figures: begin"):
        replace_tables("nothing", "")


@pytest.mark.parametrize("target", LINEAR)
def test_every_shipped_configuration_is_documented_without_a_spill(target):
    section = DOCUMENT.read_text(encoding="utf-8").split(f"### sm_{target},")[1].split("### ")[0].split(END)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]
    documented = {(row[0], row[1]) for row in rows[1:]}
    for kernel, table in (("linear", LINEAR), ("conv2d", CONV2D), ("conv2d flat", CONV2D), ("stem", STEM)):
        shipped = [
            c for c in table[target] if c.loader == "pointer" or kernel != "conv2d flat"
        ]  # no TMA of few channels
        assert {(kernel, str(config)) for config in shipped} <= documented
    assert {row[5] for row in rows[1:]} == {"0"}
