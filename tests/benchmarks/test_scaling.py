"""How cost grows, measured for moments on a small network: what is written, and that both sides go the same way."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import scaling
from benchmarks.scaling import Effort, contender, tower
from tests.runtime.networks import OneConv, images, needs_compiler
from unit_fast.runtime.compiled import Compiled
from unit_fast.runtime.program import Program
from unit_fast.timing import Timing, burst

EFFORT = Effort(
    rounds=1, seconds=0.01, restarts=0, batches=(1, 2), sides=(8,), widths=(4,), threads=(1,), images=(250,)
)


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Time here, and the eager graph: processes start slowly, and so do compilers."""

    def interleaved(contenders: dict[str, Any], *, rounds: int, seconds: float, restarts: int) -> dict[str, Any]:  # noqa: ARG001
        built = {name: build() for name, build in contenders.items()}
        return {
            name: {case: Timing.of(burst(call, seconds), 100.0) for case, call in cases.items()}
            for name, cases in built.items()
        }

    class Eagerly:
        def __init__(self, program: Program) -> None:
            self.module = program.module

        def warmup(self, batch_sizes: Sequence[int]) -> None:
            pass

        def __call__(self, x: torch.Tensor) -> object:
            return self.module(x)

    threads = torch.get_num_threads()
    monkeypatch.setattr(scaling, "interleaved", interleaved)
    monkeypatch.setattr(scaling, "Compiled", Eagerly)
    monkeypatch.setattr(scaling, "resnet", lambda _side: tower(4))
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("part", "setting", "cases"),
    [
        ("batch", "batch", {("unclamped", 1), ("unclamped", 2), ("sanitised", 1), ("sanitised", 2)}),
        ("resolution", "side", {("unclamped", 8), ("sanitised", 8)}),
        ("width", "width", {("unclamped", 4), ("sanitised", 4)}),
        ("threads", "batch", {(kind, batch) for kind in ("unclamped", "sanitised") for batch in (1, 16)}),
        (
            "granularity",
            "batch",
            {(kind, batch) for kind in ("none", "tensor", "channel", "neuron") for batch in (1, 16)},
        ),
    ],
)
def test_each_part_times_every_case_on_both_sides(tmp_path: Path, part: str, setting: str, cases: set[Any]) -> None:
    scaling.run([part], EFFORT, tmp_path)
    rows = json.loads((tmp_path / f"scaling_{part}.json").read_text())["figures"]
    assert {(row["provider"], row[setting]) for row in rows} == cases
    assert all(0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"] for row in rows)
    assert all(row["peak_mib"] == 100.0 for row in rows)


@needs_compiler
def test_both_sides_are_compiled_the_same_way_and_only_one_clamps() -> None:
    model, example = OneConv().eval(), images(4)
    with torch.no_grad():
        expected = model(example)
    for kind, clamped in ((None, False), ("neuron", True)):
        (call,) = contender(lambda: (model, example), kind, (4,)).values()
        assert isinstance(call.func, Compiled)  # type: ignore[attr-defined]
        found = call()
        assert isinstance(found, torch.Tensor)
        assert torch.allclose(found, expected, atol=1e-4) != clamped


def test_calibration_is_timed_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(command: list[str], **_: object) -> Any:
        asked.append(command[2:])
        return SimpleNamespace(stdout="1.5 200.25")

    monkeypatch.setattr(scaling, "subprocess", SimpleNamespace(run=run))
    scaling.run(["images"], EFFORT, tmp_path)
    rows = json.loads((tmp_path / "scaling_images.json").read_text())["figures"]
    assert rows == [{"images": 250, "seconds": 1.5, "peak_mib": 200.25}]
    assert asked == [["benchmarks.scaling", "--calibrate", "250"]]


def test_the_process_that_calibrates_prints_what_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = []
    monkeypatch.setattr(scaling, "calibrate", lambda _model, batches: samples.extend(x for x, _ in batches))
    scaling._calibrate(500)
    seconds, mebibytes = map(float, capsys.readouterr().out.split())
    assert sum(len(x) for x in samples) == 500
    assert seconds > 0
    assert 50 < mebibytes < 50_000
