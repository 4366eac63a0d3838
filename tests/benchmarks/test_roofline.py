"""The least work of a layer, against numbers worked out by hand."""

import pytest

from benchmarks.roofline import Ceilings, CpuCeilings, bytes_moved, cpu_ceilings, flops, memory_bound, seconds
from benchmarks.shapes import Layer

CONV = Layer("conv2d", (64, 8, 8), (32, 64, 3, 3), (32, 8, 8), padding=(1, 1), act="relu", bounded=True)
DOWNSAMPLE = Layer("conv2d", (64, 8, 8), (128, 64, 1, 1), (128, 4, 4), stride=(2, 2), residual=True)
DEPTHWISE = Layer("conv2d", (16, 8, 8), (16, 1, 3, 3), (16, 4, 4), (2, 2), (1, 1), groups=16)
LINEAR = Layer("linear", (10, 64), (128, 64), (10, 128), act="gelu", bounded=True)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        pytest.param(CONV, 2 * 5 * 32 * 64 * 64 * 9, id="conv"),
        pytest.param(DOWNSAMPLE, 2 * 5 * 128 * 16 * 64, id="strided_point"),
        pytest.param(DEPTHWISE, 2 * 5 * 16 * 16 * 9, id="depthwise"),
        pytest.param(LINEAR, 2 * 5 * 10 * 128 * 64, id="linear"),
    ],
)
def test_flops(layer, expected):
    assert flops(layer, 5) == expected


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        pytest.param(CONV, 5 * (64 * 64 + 32 * 64) + 32 * 64 * 9 + 32 + 32 * 64, id="bound_read_once"),
        pytest.param(DOWNSAMPLE, 5 * (64 * 16 + 2 * 128 * 16) + 128 * 64 + 128, id="skipped_pixels_and_a_residual"),
        pytest.param(DEPTHWISE, 5 * (16 * 64 + 16 * 16) + 16 * 9 + 16, id="stride_within_the_kernel_reads_all"),
        pytest.param(LINEAR, 5 * (10 * 64 + 10 * 128) + 128 * 64 + 128 + 10 * 128, id="linear"),
    ],
)
def test_bytes(layer, expected):
    assert bytes_moved(layer, 5, itemsize=2) == 2 * expected


def test_the_slower_of_the_two_counts():
    memory, compute = Ceilings(1e9, 1e15), Ceilings(1e15, 1e9)
    assert seconds(CONV, 5, 2, memory) == pytest.approx(bytes_moved(CONV, 5, 2) / 1e9)
    assert seconds(CONV, 5, 2, compute) == pytest.approx(flops(CONV, 5) / 1e9)
    assert memory_bound(CONV, 5, 2, memory)
    assert not memory_bound(CONV, 5, 2, compute)


def test_what_fits_a_cache_is_held_against_the_best_copy_that_is_as_large():
    ceilings = CpuCeilings(peak=7.0, copies=((100, 5.0), (1000, 8.0), (10_000, 3.0)))
    assert [ceilings.at(moved).bandwidth for moved in (50, 100, 101, 1000, 5000, 99_999)] == [8, 8, 8, 8, 3, 3]
    assert ceilings.memory == Ceilings(bandwidth=3.0, peak=7.0)


def test_the_better_of_two_measurements_counts():
    first, second = CpuCeilings(7.0, ((8, 5.0), (64, 2.0))), CpuCeilings(6.0, ((8, 4.0), (64, 3.0)))
    assert first.or_better(second) == CpuCeilings(7.0, ((8, 5.0), (64, 3.0)))


def test_the_ceilings_of_this_machine_are_measured():
    ceilings = cpu_ceilings(sizes=(2**16, 2**20), edge=256)
    assert [size for size, _ in ceilings.copies] == [2**16, 2**20]
    assert all(1e8 < rate < 1e13 for _, rate in ceilings.copies)
    assert 1e8 < ceilings.peak < 1e14
