import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from unit_fast.errors import DataError
from unit_fast.export import speed
from unit_fast.export.session import OnnxRuntimeModel
from unit_fast.export.speed import compare_speed, speed_table


def write(
    path: Path, products: int, dtype: int = TensorProto.FLOAT, shape: tuple[object, ...] = ("batch", 256)
) -> Path:
    """y = x · W · W · …"""
    weight = numpy_helper.from_array(np.eye(256, dtype=helper.tensor_dtype_to_np_dtype(dtype)), "w")
    names = ["x", *(f"v{number}" for number in range(1, products)), "y"]
    nodes = [helper.make_node("MatMul", [before, "w"], [after]) for before, after in itertools.pairwise(names)]
    values = [[helper.make_tensor_value_info(name, dtype, shape)] for name in ("x", "y")]
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", *values, [weight]), opset_imports=opset), path)
    return path


def test_more_work_takes_longer(tmp_path: Path) -> None:
    heavy, light = write(tmp_path / "heavy.onnx", 60), write(tmp_path / "light.onnx", 2)

    (found,) = compare_speed(heavy, light, batches=(64,), seconds=0.5)
    (swapped,) = compare_speed(light, heavy, batches=(64,), seconds=0.5)

    assert found.ratio > 3
    assert swapped.ratio < 1 / 3
    assert found.ratio_p20 <= found.ratio <= found.ratio_p80
    assert found.clamped.median > found.plain.median
    assert found.clamped.calls == found.plain.calls >= 5


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.INT32], ids=["float16", "int32"])
def test_inputs_of_other_types(tmp_path: Path, dtype: int) -> None:
    file = write(tmp_path / "m.onnx", 1, dtype)
    assert [found.batch for found in compare_speed(file, file, seconds=0.5)] == [1, 16]


def test_dimensions_that_nobody_knows(tmp_path: Path) -> None:
    file = write(tmp_path / "m.onnx", 1, shape=("batch", "length", 256))
    with pytest.raises(DataError, match="only its batch may be free"):
        compare_speed(file, file)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let a call take so many seconds a sample, the first file twice as long as the second."""

    def set_pace(pace: float) -> None:
        now = 0.0
        numbers: dict[int, int] = {}

        def seconds(model: OnnxRuntimeModel, inputs: dict[str, np.ndarray]) -> float:
            nonlocal now
            factor = 2 - numbers.setdefault(id(model), len(numbers))
            taken = pace * len(inputs["x"]) * factor
            now += taken
            return taken

        monkeypatch.setattr(speed, "_seconds", seconds)
        monkeypatch.setattr("unit_fast.export.speed.time.perf_counter", lambda: now)

    return set_pace


def test_ratios_are_those_of_the_clock(tmp_path: Path, clock: Callable[[float], None]) -> None:
    clock(0.001)
    file = write(tmp_path / "m.onnx", 1)

    small, large = compare_speed(file, file, seconds=1.5)

    assert (small.ratio, small.ratio_p20, small.ratio_p80) == (2, 2, 2)
    assert (large.clamped.median, large.plain.median) == pytest.approx((0.032, 0.016))
    assert small.clamped.calls == 200, "at most"
    assert 30 <= large.clamped.calls <= 33, "as long as was asked"


def test_a_slow_network_is_timed_at_batch_1_only(tmp_path: Path, clock: Callable[[float], None]) -> None:
    clock(1.0)
    file = write(tmp_path / "m.onnx", 1)

    (found,) = compare_speed(file, file, seconds=1.5)

    assert (found.batch, found.clamped.calls) == (1, 5)


def test_the_table_says_how_many_times_as_long(tmp_path: Path, clock: Callable[[float], None]) -> None:
    from rich.console import Console

    clock(0.001)
    file = write(tmp_path / "m.onnx", 1)
    console = Console(width=120)
    with console.capture() as shown:
        console.print(speed_table(compare_speed(file, file), "the title"))
    assert "the title" in shown.get()
    assert "2.00× (2.00 to 2.00)" in shown.get()
