"""``python -m benchmarks.gpu --dry-run``, whole, as one will call it on a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need Triton")

ROOT = Path(__file__).parents[2]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    result = _run("--dry-run", "--part", "values,layers,profile", "--out", str(folder), "--workers", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"gpu_dry_run_{part}.json" for part in ("layers", "profile", "values")]
    return {name.split("_")[-1]: json.loads((folder / name).read_text())["figures"] for name in names}


def test_values_go_through_every_configuration_and_see_what_is_wrong(figures):
    from unit_fast.kernels.configs import CONV2D, LINEAR, STEM

    values = figures["values.json"]
    assert values["complete"]
    assert values["dry_run"]
    assert (
        values["done"] == values["cases"] >= 2 * len(LINEAR[90]) + len(CONV2D[90]) + len(STEM[90])
    )  # 1×1 convolutions beside linear
    assert (values["differing"], values["failed"]) == ([], [])
    assert values["controls"] == {"short sum": "differs", "crash": "failed"}
    assert {name.split()[0] for name in values["kernels"]} == {
        "linear",
        "conv2d",
        "max_pool2d",
        "epilogue",
        "clamp_bound_backward",
    }
    errors = {name.split()[0]: kernel["largest_error"] for name, kernel in values["kernels"].items()}
    assert errors.pop("max_pool2d") < 1.2e-3, "the smallest case rounds nothing"
    assert all(0 < error < 1.2e-3 for error in errors.values())


def test_layers_are_timed_by_every_provider(figures):
    layers = figures["layers.json"]
    assert layers["complete"]
    assert layers["dropped"] == []
    assert len(layers["rows"]) == layers["planned"] >= 4
    for row in layers["rows"]:
        assert set(row["providers"]) == {"library", "eager", "epilogue", "fused"}
        for name, timing in row["providers"].items():
            assert 0 < timing["p20"] <= timing["median"] <= timing["p80"]
            assert row["share_of_roofline"][name] == pytest.approx(row["roofline_microseconds"] / timing["median"])
        assert row["providers"]["fused"]["configuration"] in row["configurations"]
        assert row["l2"] in ("cold", "warm")


def test_the_three_worst_layers_are_profiled(figures):
    profile = figures["profile.json"]
    assert profile["complete"]
    lost = [row["lost_microseconds"] for row in profile["rows"]]
    assert len(lost) == 3
    assert lost == sorted(lost, reverse=True)
    assert {row["layer"] for row in profile["rows"]} <= {row["layer"] for row in figures["layers.json"]["rows"]}
    assert all(row["kernels"]["eager"] for row in profile["rows"])


def test_without_a_gpu_it_says_how_to_go_on(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = _run("--out", str(tmp_path))
    assert result.returncode == 2
    assert "--dry-run" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_unknown_part_is_refused():
    result = _run("--part", "values,speed")
    assert result.returncode == 1
    assert "no part speed; expected some of environment, values, tests, layers" in result.stderr
