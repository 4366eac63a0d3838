import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from unit_fast import Bounds, Maximum, MeanStd, Percentile, Unit
from unit_fast.cli.calibrate import Hold, parse_method
from unit_fast.errors import DataError, UnitFastError

SCRIPT = Path(sys.executable).with_name("unit-fast")


@pytest.mark.parametrize(
    ("text", "tolerance", "method"),
    [
        ("unit", None, Unit()),
        ("unit", 0.01, Unit(tolerance=0.01)),
        ("paper", 0.02, Unit(recipe="paper", tolerance=0.02)),
        ("mean-std", None, MeanStd()),
        ("mean-std:2.5", None, MeanStd(k=2.5)),
        ("percentile:0.9", None, Percentile(q=0.9)),
        ("maximum", None, Maximum()),
    ],
)
def test_methods_by_name(text: str, tolerance: float | None, method: object) -> None:
    assert parse_method(text, tolerance) == method


@pytest.mark.parametrize("text", ["units", "unit:3", "maximum:2", "mean-std:x", ""])
def test_methods_there_are_not(text: str) -> None:
    with pytest.raises(DataError, match=f"--method {text}: expected"):
        parse_method(text)


def test_methods_that_hold_the_accuracy() -> None:
    assert parse_method("unit", 0.1, Hold.ACCURACY) == Unit(tolerance=0.1, hold="accuracy")
    assert parse_method("paper", None, Hold.ACCURACY) == Unit(recipe="paper", hold="accuracy")
    with pytest.raises(UnitFastError, match="the paper's recipe holds the accuracy"):
        parse_method("paper", None, Hold.DIVERGENCE)
    with pytest.raises(DataError, match="--hold is for --method unit and paper; mean-std measures"):
        parse_method("mean-std:2", None, Hold.ACCURACY)


def test_a_tolerance_is_only_for_what_searches() -> None:
    with pytest.raises(DataError, match="--tolerance is for --method unit and paper"):
        parse_method("maximum", 0.03)


@pytest.mark.parametrize("granularity", ["neuron", "channel", "tensor"])
def test_writes_bounds_that_the_library_reads(here: Path, unit_fast, granularity: str) -> None:
    result = unit_fast(
        "calibrate", "-m", "model.pt2", "--data", "clean.npz", "-o", "b.safetensors", "--method", "maximum",
        "--granularity", granularity,
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    bounds = Bounds.load(here / "b.safetensors")
    assert bounds.granularity == granularity
    assert len(bounds) == 2
    assert "b.safetensors" in result.stderr
    assert "2 sites" in result.stdout


def test_the_seed_decides_the_bounds(here: Path, unit_fast) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = ("--method", "mean-std:2", "--seed", seed, "-o", f"{name}.safetensors", "-q")
        assert unit_fast("calibrate", "-m", "model.pt2", "--data", "clean.npz", *options).exit_code == 0

    a, b, c = (Bounds.load(here / f"{name}.safetensors") for name in "abc")
    assert all(torch.equal(a[site], b[site]) for site in a)
    assert any(not torch.equal(a[site], c[site]) for site in a)


def test_json_describes_the_file(here: Path, unit_fast) -> None:
    result = unit_fast("calibrate", "-m", "model.pt2", "--data", "clean.npz", "--method", "percentile:0.9", "--json")

    described = json.loads(result.stdout)
    bounds = Bounds.load(here / "bounds.safetensors")
    assert described["output"] == "bounds.safetensors"
    assert described["sha256"] == bounds.sha256
    assert described["bounds"] == sum(bound.numel() for bound in bounds.values())
    assert described["interrupted"] is False


def test_factory_weights_and_filters(here: Path, unit_fast) -> None:
    result = unit_fast(
        "calibrate", "-m", "nets:net", "--weights", "weights.pth", "--model-args", '{"classes": 3}',
        "--data", "clean.npz", "--method", "maximum", "--exclude", "1",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert list(Bounds.load(here / "bounds.safetensors")) == ["4"]


def test_normalisation_reaches_the_model(here: Path, unit_fast) -> None:
    arguments = ("calibrate", "-m", "model.pt2", "--data", "clean.npz", "--method", "maximum", "-q")
    unit_fast(*arguments, "-o", "raw.safetensors")
    unit_fast(*arguments, "-o", "twice.safetensors", "--std", "0.5")

    raw, twice = Bounds.load(here / "raw.safetensors"), Bounds.load(here / "twice.safetensors")
    first = next(iter(raw))
    assert float(twice[first].mean()) > 1.3 * float(raw[first].mean())


def test_labels_in_another_order_are_doubted(here: Path, prepared: Path, unit_fast) -> None:
    spoiled(prepared, here / "turned.npz", y=lambda y: (y + 1) % 3)
    arguments = ("calibrate", "-m", "model.pt2", "--method", "maximum", "--data")

    turned, right = unit_fast(*arguments, "turned.npz"), unit_fast(*arguments, "clean.npz")

    assert "gets only 0.0% of these samples right; are the classes numbered" in turned.stderr
    assert "warning" not in right.stderr
    assert "validation: 100.00% →" in right.stdout


def test_plot(here: Path, unit_fast) -> None:
    result = unit_fast(
        "calibrate", "-m", "model.pt2", "--data", "clean.npz", "--method", "maximum", "--plot", "bounds.png"
    )

    assert result.exit_code == 0, result.stderr
    assert (here / "bounds.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("plot", "says"),
    [
        pytest.param("p.xyz", r"a picture cannot end in '\.xyz'; expected one of .*png", id="no-picture"),
        pytest.param("b.png", "is the file that --output goes to", id="same-as-output"),
        pytest.param("./sub/../b.png", "is the file that --output goes to", id="same-by-another-path"),
        pytest.param("link.png", "is the file that --output goes to", id="link-to-output"),
        pytest.param(
            "b.png.checkpoint", "is the file that the checkpoint of --output goes to", id="checkpoint-of-output"
        ),
    ],
)
def test_a_plot_that_cannot_be_written_is_refused_before_the_work(here: Path, unit_fast, plot: str, says: str) -> None:
    (here / "sub").mkdir()
    (here / "link.png").symlink_to(here / "b.png")

    result = unit_fast(
        "calibrate", "-m", "model.pt2", "--data", "clean.npz", "--method", "maximum", "-o", "b.png", "--plot", plot
    )

    assert result.exit_code != 0
    assert re.search(says, " ".join(str(result.exception or "").split()) + " ".join(result.stderr.split()))
    assert "calibrating" not in result.stderr
    assert not (here / "b.png").exists()


def test_an_output_that_leads_to_its_checkpoint_is_refused(here: Path, unit_fast) -> None:
    (here / "b").symlink_to("b.checkpoint")

    result = unit_fast("calibrate", "-m", "model.pt2", "--data", "clean.npz", "--method", "maximum", "-o", "b")

    assert result.exit_code == 2
    assert "the checkpoint of --output b.checkpoint is the file that --output goes to" in result.stderr


def test_a_checkpoint_does_not_replace_what_is_read(here: Path, unit_fast) -> None:
    (here / "b.safetensors.checkpoint").write_bytes(b"weights")

    result = unit_fast(
        "calibrate", "-m", "nets:net", "--weights", "b.safetensors.checkpoint", "--data", "clean.npz",
        "-o", "b.safetensors",
    )  # fmt: skip

    assert result.exit_code == 2
    assert "the checkpoint of --output, b.safetensors.checkpoint is what --weights names" in result.stderr
    assert (here / "b.safetensors.checkpoint").read_bytes() == b"weights"


def first_becomes(label: int, y: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(y)) == 0, label, y)


def spoiled(prepared: Path, to: Path, **changes: object) -> Path:
    with np.load(prepared / "clean.npz") as arrays:
        content = dict(arrays)
    np.savez(
        to,
        **{name: change(content[name]) for name, change in changes.items()}
        | {name: value for name, value in content.items() if name not in changes},
    )
    return to


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({"y": np.zeros_like}, "class", id="one-class"),
        pytest.param({"y": lambda y: np.where(np.arange(len(y)) == 0, 3, y)}, "3", id="label-out-of-range"),
        pytest.param(
            {"y": lambda y: np.where(np.arange(len(y)) == 0, 2, y % 2)}, "single sample", id="class-of-one-sample"
        ),
        pytest.param({"x": lambda x: np.where(x == x.max(), np.nan, x)}, "NaN", id="nan"),
        pytest.param({"x": lambda x: x[:0], "y": lambda y: y[:0]}, "shape (0, 1, 8, 8)", id="empty"),
        pytest.param({"x": lambda x: x[:, :, :4, :4]}, "does not run on a batch", id="wrong-size"),
    ],
)
def test_data_that_cannot_be_used_is_said_and_nothing_written(
    here: Path, prepared: Path, unit_fast, changes: dict[str, object], says: str
) -> None:
    spoiled(prepared, here / "spoiled.npz", **changes)

    result = unit_fast("calibrate", "-m", "model.pt2", "--data", "spoiled.npz", "--method", "mean-std")

    assert result.exit_code == 2, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("unit-fast: error: ")
    assert says in last
    assert not list(here.glob("bounds*"))


def test_a_checkpoint_that_needs_unpickling(here: Path, unit_fast) -> None:
    class Settings:
        pass

    import __main__

    __main__.Settings = Settings  # type: ignore[attr-defined]
    Settings.__module__, Settings.__qualname__ = "__main__", "Settings"
    torch.save({"net": torch.load(here / "weights.pth"), "settings": Settings()}, here / "pickled.pth")

    result = unit_fast("calibrate", "-m", "nets:net", "--weights", "pickled.pth", "--data", "clean.npz")

    assert result.exit_code == 2
    assert "pickled Python objects" in result.stderr


@pytest.mark.usefixtures("here")
def test_an_unwritable_output_is_found_before_the_model_is_even_looked_for(unit_fast) -> None:
    result = unit_fast("calibrate", "-m", "absent.pt2", "--data", "absent", "-o", "absent/bounds.safetensors")

    assert result.exit_code == 2
    assert "there is no folder absent; create it first" in result.stderr


def test_a_full_disk_leaves_nothing(here: Path, unit_fast, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)

    result = unit_fast("calibrate", "-m", "model.pt2", "--data", "clean.npz", "--method", "maximum")

    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert {path.name for path in here.iterdir()} == {"model.pt2", "nets.py", "weights.pth", "clean.npz"}


@pytest.mark.usefixtures("here")
def test_verbose_shows_where(unit_fast) -> None:
    result = unit_fast("calibrate", "-m", "absent.pt2", "--data", "clean.npz", "--verbose")

    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("unit-fast: error: --model absent.pt2")


@pytest.mark.usefixtures("here")
def test_nothing_to_resume(unit_fast) -> None:
    result = unit_fast("calibrate", "-m", "model.pt2", "--data", "clean.npz", "--resume")

    assert result.exit_code == 2
    assert "nothing to go on with" in result.stderr


def test_ctrl_c_keeps_what_there_is_and_resume_ends_as_if_uninterrupted(here: Path) -> None:
    whole = ["calibrate", "-m", "model.pt2", "--data", "clean.npz", "--method", "paper", "--tolerance", "0.5", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1"}
    # Ctrl-C in the middle of a search takes luck to time; here it comes after the tenth step.
    (here / "sitecustomize.py").write_text(INTERRUPT_AT_STEP_TEN)

    def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCRIPT, *arguments], cwd=here, env=environment | extra, capture_output=True, text=True, timeout=300
        )

    stopped = run(*whole, "-o", "b.safetensors", STOP="1")
    assert stopped.returncode == 130, stopped.stderr
    assert json.loads(stopped.stdout)["interrupted"] is True
    assert "step 10 of 300" in stopped.stderr
    assert (here / "b.safetensors.checkpoint").exists()
    Bounds.load(here / "b.safetensors")

    resumed = run(*whole, "-o", "b.safetensors", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert not (here / "b.safetensors.checkpoint").exists()

    through = run(*whole, "-o", "c.safetensors")
    assert through.returncode == 0, through.stderr
    one, other = Bounds.load(here / "b.safetensors"), Bounds.load(here / "c.safetensors")
    assert all(torch.equal(one[site], other[site]) for site in one)


INTERRUPT_AT_STEP_TEN = """
import os, signal

if os.environ.get("STOP"):
    from unit_fast.calibration.paper import PaperSearch

    step = PaperSearch.step

    def interrupted(self):
        step(self)
        if self.done == 9:
            os.kill(os.getpid(), signal.SIGINT)

    PaperSearch.step = interrupted
"""
