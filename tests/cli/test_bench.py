"""``unit-fast bench``: every way is timed, what cannot run is named, the JSON says what was measured."""

import json

import pytest


def test_times_the_model_with_bounds_and_without(here, unit_fast):
    result = unit_fast(
        *("bench", "-m", "nets:net", "--input-shape", "1x8x8", "--batch", "1,4", "--backends", "eager"),
        *("--rounds", 2, "--seconds", 0.02, "-o", "bench.json", "--json"),
    )
    assert result.exit_code == 0, result.stderr
    printed, written = json.loads(result.stdout), json.loads((here / "bench.json").read_text())
    assert printed == written
    rows = {(row["backend"], row["clamped"], row["batch"]): row for row in written["results"]}
    ways = [("eager", False), ("eager", True)]
    assert set(rows) == {(*way, batch) for way in ways for batch in (1, 4)}
    for (_, _, batch), row in rows.items():
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["calls"] >= 2
        assert row["samples_per_second"] == pytest.approx(1000 * batch / row["median_ms"])
    assert written["environment"]["versions"]["torch"]
    assert "stand-ins" in result.stderr


@pytest.mark.parametrize(
    "model",
    [("--input-shape", "1x8x8"), ("--weights", "weights.pth", "--input-shape", "1x9x9")],
    ids=["other weights", "other size"],
)
@pytest.mark.usefixtures("here")
def test_bounds_of_another_model_are_refused_before_anything_is_timed(unit_fast, fitted, monkeypatch, model):
    monkeypatch.setattr("unit_fast.timing.interleaved", lambda *_, **__: pytest.fail("timed"))
    result = unit_fast("bench", "-m", "nets:net", *model, "-b", fitted("maximum"), "--backends", "eager")
    assert result.exit_code == 2
    assert "these bounds were fitted on another model" in result.stderr
    assert result.stdout == ""


@pytest.mark.usefixtures("here")
def test_bounds_of_the_model_are_timed(unit_fast, fitted):
    result = unit_fast(
        *("bench", "-m", "nets:net", "--weights", "weights.pth", "-b", fitted("maximum"), "--input-shape", "1x8x8"),
        *("--batch", 1, "--backends", "eager", "--rounds", 1, "--seconds", 0.01, "--json"),
    )
    assert result.exit_code == 0, result.stderr
    assert [row["clamped"] for row in json.loads(result.stdout)["results"] if "batch" in row] == [False, True]
    assert "stand-ins" not in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch", "0"), "--batch 0"),
        (("--batch", "1,one"), "--batch 1,one"),
        (("--batch", "2,2"), "--batch 2,2"),
        (("--input-shape", "1x8x8", "--backends", "tensorrt"), "'tensorrt' is none of auto"),
        ((), "--input-shape"),
        (("--input-shape", "3x8x8"), "(2, 3, 8, 8)"),
        (("--input-shape", "1x8x8", "-b", "absent"), "there is no bounds file absent"),
    ],
    ids=["no samples", "not numbers", "twice the same", "unknown backend", "unknown input", "wrong channels", "bounds"],
)
@pytest.mark.usefixtures("here")
def test_what_cannot_be_timed_is_refused_in_one_line(unit_fast, options, message):
    result = unit_fast("bench", "-m", "nets:net", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2
