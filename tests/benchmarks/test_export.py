"""The export's benchmark, on a small network and for moments: what it writes, and the tables made of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import export as benchmark
from benchmarks import export_accuracy, export_files, tables_export
from benchmarks.export import Effort
from benchmarks.export_files import PLAIN, PLAIN_INT8, Way
from tests.export.models import bounds_for, make
from unit_fast.evaluation.triggers import Patch
from unit_fast.processor import weight_bits
from unit_fast.timing import Timing, burst

EFFORT = Effort(network="small", rounds=2, seconds=0.02, restarts=0, networks=("small",))


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a part; its rows as they stand in the file."""
    monkeypatch.setattr(export_files, "make", make)
    for module in (benchmark, export_accuracy):
        monkeypatch.setattr(module, "available", lambda _name: None)
    export_files.Workshop.network.cache_clear()

    def run(part: str) -> list[dict[str, Any]]:
        benchmark.run([part], EFFORT, tmp_path)
        written: list[dict[str, Any]] = json.loads((tmp_path / f"export_{part}.json").read_text())["figures"]
        return written

    yield run
    export_files.Workshop.network.cache_clear()


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time here: processes start slowly, and one test with them is enough."""

    def interleaved(
        contenders: dict[str, Any],
        *,
        rounds: int,
        seconds: float,
        restarts: int = 0,  # noqa: ARG001
    ) -> dict[str, dict[str, Timing]]:
        built = {name: build() for name, build in contenders.items()}
        return {
            name: {case: Timing.of(burst(call, rounds * seconds)) for case, call in cases.items()}
            for name, cases in built.items()
        }

    monkeypatch.setattr(benchmark, "interleaved", interleaved)


def test_every_file_is_timed_beside_the_one_without_clamps(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Way("clip", "neuron")
    monkeypatch.setattr(benchmark, "COST", (PLAIN, Way("min", "neuron"), refused))

    found = rows("cost")

    timed = {(row["form"], row["batch"]): row for row in found if "median_ms" in row}
    assert set(timed) == {(form, batch) for form in ("no clamps", "min") for batch in (1, 16)}
    for (form, batch), row in timed.items():
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["ratio"] == pytest.approx(row["median_ms"] / timed["no clamps", batch]["median_ms"]), form
        assert (row["runtime"], row["threads"]) == ("onnxruntime", 2)
    (reason,) = [row["reason"] for row in found if "reason" in row]
    assert "clip" in reason


@pytest.mark.usefixtures("one_process")
def test_int8_is_timed_beside_the_int8_of_others(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "INT8", (PLAIN, PLAIN_INT8))

    found = [row for row in rows("int8") if row["batch"] == 16]

    assert [(row["precision"], row["maker"]) for row in found] == [
        ("fp32", "unit_fast"), ("int8", "onnxruntime.quantization"),
    ]  # fmt: skip
    assert found[1]["int8_ratio"] == 1.0
    assert found[0]["int8_ratio"] == pytest.approx(1 / found[1]["ratio"])


@pytest.mark.usefixtures("one_process")
def test_openvino_runs_the_same_files(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    monkeypatch.setattr(benchmark, "OPENVINO", (PLAIN, Way("min", "channel")))

    found = rows("openvino")

    assert {(row["form"], row["batch"], row["runtime"]) for row in found} == {
        (form, batch, "openvino") for form in ("no clamps", "min") for batch in (1, 16)
    }


def test_what_is_refused_says_why(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "FORMS", (Way("clip", "neuron"), Way("min", "neuron")))

    refused, held = rows("forms")

    assert refused["error"] == "ExportError"
    assert "expected tensor granularity" in refused["reason"]
    assert held["sites"] == {"min": 2}
    assert 0 < held["max_rel_error"] < 1e-5
    assert held["bytes"] > 1000


@pytest.mark.skipif(weight_bits() < 8, reason="without VNNI, which this processor lacks, 8-bit weights overflow")
def test_the_noise_of_int8_is_that_of_others_and_ours_with_and_without_corrected_biases(rows: Any) -> None:
    found = {row["maker"]: row for row in rows("noise")}

    assert list(found) == ["onnxruntime.quantization, no clamps", "unit_fast, biases as they were", "unit_fast"]
    assert all(row["int8_snr_db"] > 0 and 0 <= row["changed"] <= 1 - row["agreement"] for row in found.values())
    assert found["unit_fast"]["int8_snr_db"] != found["unit_fast, biases as they were"]["int8_snr_db"]


def test_files_are_as_accurate_as_torch(rows: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, images = make("small")
    images = images.sigmoid()
    labels = torch.arange(len(images)) % 5
    monkeypatch.setattr(export_accuracy, "ROOT", tmp_path)
    monkeypatch.setattr(export_accuracy, "FILES", (("fp32", {}),))
    signs = export_accuracy.gtsrb
    monkeypatch.setattr(signs, "UNDEFENDED", {"net": (None, None)})
    monkeypatch.setattr(signs, "load_model", lambda _name: model)
    monkeypatch.setattr(signs, "load_images", lambda _split: (images, labels))
    monkeypatch.setattr(signs, "trigger_of", lambda _name: (Patch(size=2, row=0, col=0, value=1.0), 0))
    monkeypatch.setattr(
        export_accuracy.uf, "calibrate", lambda model, _data, granularity: bounds_for(model, images, granularity)
    )

    found = rows("accuracy")

    assert [(row["granularity"], row["file"]) for row in found] == [
        (granularity, file) for granularity in ("neuron", "channel") for file in ("none, in torch", "fp32")
    ]
    for torch_, file in (found[:2], found[2:]):
        assert (file["accuracy"], file["attack_success"]) == (torch_["accuracy"], torch_["attack_success"])
        assert file["agreement"] == 1.0
        assert 0 < file["max_rel_error"] < 1e-3


def test_without_the_evaluation_data_the_part_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(export_accuracy, "ROOT", tmp_path / "absent")
        benchmark.run(["accuracy"], EFFORT, tmp_path)

    assert "the evaluation data beside the project is absent" in caplog.text
    assert not list(tmp_path.iterdir())


def test_rows_of_other_networks_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(benchmark.PARTS, "forms", lambda effort: iter({"network": n} for n in effort.networks))
    for networks in (("a", "b"), ("b", "c")):
        benchmark.run(["forms"], Effort(networks=networks), tmp_path)
    written = json.loads((tmp_path / "export_forms.json").read_text())["figures"]
    assert [row["network"] for row in written] == ["a", "b", "c"]


def test_the_tables_say_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(network: str, form: str, granularity: str, precision: str, **figures: Any) -> dict[str, Any]:
        return {"network": network, "form": form, "granularity": granularity, "precision": precision} | figures

    results = {
        "forms": [
            row("vit_32", "clip", "tensor", "fp32", sites={"clip": 4}, max_rel_error=3.2e-6),
            row("vit_32", "folded", "channel", "fp32", sites={"min": 3, "folded": 1}, max_rel_error=4e-6),
            row("vit_32", "folded", "tensor", "fp32", sites={"min": 4}, max_rel_error=4e-6),
            row("vit_32", "auto", "channel", "int8", sites={"scale": 4}, max_rel_error=1e-6, int8_agreement=0.992),
            row("vit_32", "auto", "neuron", "int8", error="ExportError", reason="because"),
            row("vit_32", "auto", "neuron", "fp16", sites={"min": 4}, max_rel_error=2e-2, output_rel_error=3e-3),
        ],
        "noise": [
            {"network": "vit_32", "maker": "theirs", "int8_snr_db": 17.04, "changed": 0.0312},
            {"network": "vit_32", "maker": "ours", "error": "ExportError", "reason": "because"},
        ],
        "accuracy": [
            {"network": "gtsrb_vgg_badnets_target8", "granularity": "neuron", "file": "int8"}
            | {"accuracy": 0.9725, "attack_success": 0.0021, "agreement": 0.99875},
        ],
        "cost": [
            row("n", "min", "neuron", "fp32", maker="unit_fast", batch=batch, median_ms=2.0, p20_ms=1.9, p80_ms=2.2)
            | {"ratio": 1.08}
            for batch in (1, 16)
        ],
    }
    monkeypatch.setattr(tables_export, "_rows", lambda part: results.get(part, []))

    heads, cells = tables_export.forms()
    by_head = dict(zip(heads, cells, strict=True))
    assert by_head["`clip`, tensor"] == "3e-06"
    assert by_head["`folded`, channel"] == "4e-06 (1 of 4 sites)"
    assert by_head["`folded`, tensor"] == "4e-06 (0 of 4 sites)"
    assert by_head["int8, channel"] == "99.2%"
    assert by_head["int8, neuron"] == "refused"
    assert by_head["fp16, neuron"] == "2e-02, outputs 3e-03"
    assert tables_export.noise() == [["network", "theirs", "ours"], ["ViT (GELU), 32²", "17.0 dB, 3.1%", "refused"]]
    assert tables_export.accuracy()[1] == ["BadNets patch", "neuron", "int8", "97.25%", "0.21%", "99.88%", "–"]
    assert tables_export.cost()[1] == ["fp32", "min", "neuron", *["2.00 (1.90 to 2.20)", "1.08×"] * 2]
