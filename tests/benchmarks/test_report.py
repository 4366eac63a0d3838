"""Tables and pictures are made of the results, and say so where there are none."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from benchmarks import plots, plots_layers, plots_scaling, tables
from benchmarks.plots import PICTURES
from benchmarks.tables import TABLES, filled


def _ms(median: float, **more: Any) -> dict[str, Any]:
    return {"median_ms": median, "p20_ms": median * 0.9, "p80_ms": median * 1.1, "peak_mib": 100 * median} | more


def _us(median: float, **more: Any) -> dict[str, Any]:
    return {"median": median, "p20": median * 0.9, "p80": median * 1.1} | more


def _layer(batch: int, networks: dict[str, int], **medians: float) -> dict[str, Any]:
    return {
        "layer": f"conv2d {batch}", "batch": batch, "networks": networks, "flops": 4e6 * batch, "bytes": 1e5,
        "roofline_microseconds": 10.0, "share_of_roofline": {name: 10.0 / value for name, value in medians.items()},
        "providers": {name.replace("_", " "): _us(value) for name, value in medians.items()},
    }  # fmt: skip


def _cpu_layer(batch: int, count: int) -> dict[str, Any]:
    row = _layer(batch, {"net": count}, unclamped_eager=30.0, eager=40.0, unclamped_compile=16.0, sanitised=20.0)
    return row | {"share_of_roofline": {"sanitised": 0.5}}


PAIR = [(kind, 1 if kind == "unclamped" else 1.5) for kind in ("unclamped", "sanitised")]
RESULTS: dict[str, Any] = {
    "runtime_networks": {
        "rows": [
            _ms(2.0 / speed, network="vit_32", provider=kind, batch=n, speed=speed)
            for n in (1, 16)
            for kind, speed in (("unclamped torch.compile", 1.0), ("sanitised auto", 1.25))
        ]
    },
    "compilation": [
        {"network": "net", "launches": 30, "kernels": 12, "seconds": {"1": [9.0, 8.0, 12.0], "4": [3.0, 2.5, 2.0]}}
    ],
    "scaling_batch": [_ms(t * n, provider=kind, batch=n) for kind, t in PAIR for n in (1, 2)],
    "scaling_resolution": [_ms(t, provider=kind, batch=4, side=16) for kind, t in PAIR],
    "scaling_width": [_ms(t, provider=kind, batch=4, width=8) for kind, t in PAIR],
    "scaling_threads": [_ms(t, provider=kind, batch=16, threads=2) for kind, t in PAIR],
    "scaling_granularity": [
        _ms(2.0 + place, provider=kind, batch=1) for place, kind in enumerate(("none", "tensor", "channel", "neuron"))
    ],
    "scaling_images": [{"images": n, "seconds": n / 100, "peak_mib": 300.4} for n in (250, 1000)],
    "simulation": {
        "batch": [
            {"network": "net", "batch": 8, "fused simulated_ms": 2.0}
            | {f"{name} simulated_ms": 3.0 for name in ("eager + clamp", "compile", "unclamped compile")}
        ],
        "cpu": {
            "rows": [
                {"provider": "sanitised", "batch": 2, "simulated_ms": 1.0},
            ]
        },
    },
    "layers_cpu": {
        "ceilings": {"bandwidth": 1e10, "peak": 1e11, "copies": [[1000, 4e10], [100000, 1e10]]},
        "rows": [_cpu_layer(1, 3), _cpu_layer(16, 2)],
    },
    "gpu_h200_layers": {
        "ceilings": {"bandwidth": 4e12, "peak": 8e14},
        "rows": [
            _layer(1, {"net": 1}, library=20.0, eager=50.0, epilogue=30.0, fused=25.0, compile=40.0),
            _layer(256, {"net": 2}, library=20.0, eager=60.0, epilogue=20.0, fused=25.0),
            _layer(32, {"net": 1}, library=20.0, eager=60.0),
        ],
    },
    "gpu_h200_models": {
        "rows": {f"net/{n}/unit_fast": {"microseconds": _us(1500.0), "images_per_second": 2000.0} for n in (1, 32)},
        "ratios": {"net/1": {"eager": 3.0, "reduce_overhead": 1.5}, "net/32": {"eager": 2.0}},
    },
    "export_cost": [
        {"form": form, "granularity": granularity, "batch": n, "ratio": 1.1, "precision": "fp32"}
        | _ms(2.0, maker="unit_fast")
        for n in (1, 16)
        for form, granularity in (("no clamps", None), ("clip", "tensor"), ("min", "neuron"))
    ],
}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("benchmarks.results_file.RESULTS", tmp_path)
    for name, figures in RESULTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"environment": {}, "figures": figures}))
    return tmp_path


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize(
    ("name", "row", "cells"),
    [
        ("runtime_networks", 2, ["ViT (GELU), 32²", "16", "2.00 (1.80 to 2.20)", "1.25×"]),
        ("compilation", 1, ["net", "30", "12", "9.0 (8.0 to 12.0)", "2.5 (2.0 to 3.0)"]),
        ("scaling_batch", 1, ["1", "1.00 (0.90 to 1.10)", "1.50 (1.35 to 1.65)", "1.50×", "100 → 150"]),
        ("scaling_resolution", 1, ["16", "1.00 (0.90 to 1.10)", "1.50 (1.35 to 1.65)", "1.50×", "100 → 150"]),
        ("scaling_threads", 1, ["2, 16", "1.00 (0.90 to 1.10)", "1.50 (1.35 to 1.65)", "1.50×", "100 → 150"]),
        ("scaling_granularity", 4, ["neuron", "5.00 (4.50 to 5.50)", "2.50×"]),
        ("scaling_images", 2, ["1,000", "10", "300"]),
        ("simulated", 1, ["net", "8", "2.000", "1.50×", "1.50×", "1.50×"]),
        ("simulated_cpu", 1, ["sanitised", "2", "1.00", "3.00", "0.33"]),
        (
            "layers_cpu",
            1,
            ["conv2d 1", "1", "40 (36 to 44)", "16 (14 to 18)", "20 (18 to 22)", "2.00×", "1.25×", "50"],
        ),
        ("layers_cpu_sums", 2, ["net", "16", "0.06", "0.08", "0.03", "0.04", "2.00×", "50"]),
        (
            "layers_gpu",
            1,
            ["H200", "conv2d 256", "256", "20 (18 to 22)", "60 (54 to 66)", "–", "20 (18 to 22)", "3.00×", "50"],
        ),
        (
            "layers_gpu",
            2,
            [
                "H200",
                "conv2d 1",
                "1",
                "20 (18 to 22)",
                "50 (45 to 55)",
                "40 (36 to 44)",
                "25 (22 to 28)",
                "2.00×",
                "40",
            ],
        ),
        (
            "models_gpu",
            1,
            ["H200", "net", "1", "1.500 (1.350 to 1.650)", "2,000", "eager 3.00×, reduce overhead 1.50×"],
        ),
    ],
)
def test_tables_say_what_was_measured(name: str, row: int, cells: list[str]) -> None:
    table = TABLES[name]()
    assert table[row] == cells
    assert all(len(line) == len(table[0]) for line in table)


@pytest.mark.usefixtures("results")
def test_layers_lie_on_the_roofline_where_they_were_measured() -> None:
    for figure, batches in ((plots_layers.roofline_cpu(), ["1", "16"]), (plots_layers.roofline_gpu(), ["1", "256"])):
        assert [axes.get_title().split()[-1] for axes in figure.axes] == batches
        eager, ours = (scatter.get_offsets().tolist() for scatter in figure.axes[0].collections)
        assert eager[0][0] == ours[0][0] == pytest.approx(40.0)  # 4e6 operations over 1e5 bytes
        assert eager[0][1] == pytest.approx(4e6 / (40e-6 if batches[1] == "16" else 50e-6))
        assert ours[0][1] == pytest.approx(4e6 / (20e-6 if batches[1] == "16" else 25e-6))
        slant = figure.axes[0].lines[0]
        assert slant.get_ydata().max() <= (1e11 if batches[1] == "16" else 8e14)
        assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "log")


@pytest.mark.usefixtures("results")
def test_bars_and_lines_are_as_high_as_what_was_measured() -> None:
    bars = [bar.get_height() for bar in plots_layers.models_gpu().axes[0].patches]
    assert bars == [3.0, 1.5]
    for points in plots.clamp_cost(RESULTS["export_cost"]).axes[0].containers:  # a batch size each
        middle, _, (whiskers,) = points
        assert middle.get_ydata().tolist() == pytest.approx([1.1, 1.1])  # two forms
        assert [ends[:, 1].tolist() for ends in whiskers.get_segments()] == [pytest.approx([0.99, 1.21])] * 2
    granularity = [bar.get_height() for bar in plots_scaling.granularity().axes[0].patches]
    assert granularity == [1.0, 1.5, 2.0, 2.5]
    times, memory = plots_scaling.batch().axes
    assert [line.get_ydata().tolist() for line in times.lines] == [[1.0, 1.0], [1.5, 1.5]]
    assert [line.get_ydata().tolist() for line in memory.lines] == [[100.0, 200.0], [150.0, 300.0]]
    assert [axes.lines[0].get_ydata().tolist() for axes in plots_scaling.images().axes] == [[2.5, 10.0], [300.4, 300.4]]


def test_what_was_not_measured_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.results_file.RESULTS", tmp_path / "none")
    document = tables.ROOT / "docs" / "performance.md"
    text = filled(document)
    assert "![" not in text
    for name in TABLES:
        if f"<!-- table: {name} -->" in text:
            table = text.split(f"<!-- table: {name} -->\n")[1].split("<!-- end -->")[0]
            assert table.startswith("| not measured yet |\n| --- |\n| there is no `benchmarks/results/")
    plots.main(tmp_path / "images")
    assert list((tmp_path / "images").iterdir()) == []


@pytest.mark.usefixtures("results")
def test_pictures_are_drawn_and_named_where_there_are_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda _figure, path, **_: saved.append(path) or Path(path).touch())
    plots.main(tmp_path / "images")
    drawn = {path.stem for path in (tmp_path / "images").iterdir()}
    assert drawn == set(PICTURES) - {"tolerance", "speed"}  # whose results are not there
    text = filled(tables.ROOT / "docs" / "performance.md")
    assert "![Layers on the roofline of the CPU](images/roofline_cpu.svg)" in text
