"""The tables of configurations, and how a shape prunes them."""

from __future__ import annotations

import pytest

from unit_fast.kernels.configs import (
    CONV2D,
    LINEAR,
    STEM,
    MatmulConfig,
    activation_constants,
    architecture,
    depthwise_configs,
    fitting,
    next_power_of_two,
    pointwise_config,
)
from unit_fast.kernels.dispatch.candidates import WIDTH

TABLES = {
    f"{name}_sm_{a}": table
    for name, by in (("linear", LINEAR), ("conv2d", CONV2D), ("stem", STEM))
    for a, table in by.items()
}


@pytest.mark.parametrize(("n", "expected"), [(0, 1), (1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_next_power_of_two(n, expected):
    assert next_power_of_two(n) == expected


@pytest.mark.parametrize(
    ("act", "act_args", "expected"),
    [
        ("relu", (), ("relu", 0.0, 0.0)),
        ("relu6", (), ("hardtanh", 0.0, 6.0)),
        ("hardtanh", (), ("hardtanh", -1.0, 1.0)),
        ("hardtanh", (-2, 3), ("hardtanh", -2.0, 3.0)),
        ("leaky_relu", (0.2,), ("leaky_relu", 0.2, 0.0)),
    ],
)
def test_activation_constants(act, act_args, expected):
    assert activation_constants(act, act_args) == expected


@pytest.mark.parametrize(
    ("capability", "column"), [(75, 80), (80, 80), (86, 80), (89, 80), (90, 90), (100, 100), (120, 100)]
)
def test_a_card_takes_the_newest_column_that_is_not_newer(capability, column):
    assert architecture(capability) == column


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_tiles_are_what_the_kernels_can_walk(table):
    for config in table:
        sizes = (config.block_m, config.block_n, config.block_k)
        assert all(size == next_power_of_two(size) >= 16 for size in sizes)
        assert config.block_n // config.subtiles >= 16
        if config.loader == "tma":
            height, width = config.patch()
            assert height * width == config.block_m
            assert max(config.block_m, config.block_n) <= 256, "the most that a TMA box has along an axis"
    assert len(set(map(str, table))) == len(table), "the dispatch remembers configurations by their names"


def test_convolutions_keep_to_four_warps_but_for_those_that_a_gpu_has_shown_to_be_right():
    assert {config.num_warps for config in CONV2D[80]} == {4}
    eight = {(config.loader, config.block_m, config.block_n) for config in CONV2D[90] if config.num_warps == 8}
    assert eight == {("tma", 128, 128), ("pointer", 128, 128)}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("shape", [(1, 1), (1, 1000), (49, 2048), (256 * 3136, 64), (2**31 - 1, 4096)], ids=str)
@pytest.mark.parametrize("k", [16, 4608])
@pytest.mark.parametrize("tma", [False, True], ids=["pointers", "tma"])
@pytest.mark.parametrize("stream", [False, True], ids=["strided", "in_order"])
def test_every_shape_has_a_configuration_that_it_may_use(table, itemsize, shape, k, tma, stream):
    configs = fitting(table, *shape, k, 132, tma=tma, stream=stream, itemsize=itemsize)
    assert configs
    assert k < 100 or all(config.num_stages > 2 for config in configs), "those of two stages are for short sums"
    assert all(config in table for config in configs)
    loaders = {config.loader for config in configs}
    assert loaders <= {"pointer"} | ({"tma"} if tma else set()) | ({"stream"} if stream and k < 100 else set())
    assert itemsize == 2 or all(config.float32 for config in configs)


@pytest.mark.parametrize(
    ("m", "n", "k", "tma", "best"),
    [  # the fastest on an H200
        pytest.param(32 * 3136, 128, 256, True, "pointer 128x128x64 w8 s3", id="large"),
        pytest.param(32 * 3136, 64, 256, True, "tma 128x64x64 w4 s4", id="narrow"),
        pytest.param(49, 2048, 512, True, "pointer 16x64x128 w4 s4", id="few_rows"),
        pytest.param(784, 128, 512, True, "pointer 16x64x64 w4 s4", id="few_tiles"),
    ],
)
def test_what_is_fastest_is_among_those_that_are_timed(m, n, k, tma, best):
    configs = fitting(LINEAR[90], m, n, k, 132, tma=tma, stream=True)
    assert best in map(str, configs[:WIDTH])
    assert all(c.block_n < 2 * max(n, 64) for c in configs)


@pytest.mark.parametrize(("k", "step"), [(16, 64), (64, 64), (65, 128), (256, 256)])
def test_streams_of_the_sum_s_own_step_come_first(k, step):
    configs = fitting(LINEAR[90], 10**6, 256, k, 132, tma=True, stream=True)
    assert [(c.loader, c.block_k) for c in configs[:2]] == [("stream", step)] * 2
    assert all(c.loader != "stream" for c in configs[2:])


@pytest.mark.parametrize(
    ("name", "programs"),
    [
        ("tma 128x128x64 w8 s4", 1),
        ("tma 128x128x64 w4 s3", 2),
        ("tma 64x64x64 w4 s4", 2),
        ("stream 64x128x64 w4 s3", 2),
    ],
)
def test_small_tiles_share_a_multiprocessor(name, programs):
    assert next(c for c in LINEAR[90] if str(c) == name).side_by_side() == programs


def test_float32_takes_as_many_bytes_a_step():
    config = MatmulConfig("pointer", 64, 64, 64, num_warps=4, num_stages=3)
    assert (config.k_of(2), config.k_of(4)) == (64, 32)
    assert str(config) == "pointer 64x64x64 w4 s3"


@pytest.mark.parametrize(("rows", "positions"), [(1, 1), (256, 10), (256, 64 * 56 * 56), (256 * 3136, 64), (1, 10**6)])
def test_pointwise_tile_covers_without_waste(rows, positions):
    config = pointwise_config(rows, positions)
    assert config.block_r * config.block_s <= 1024
    assert config.block_s < 2 * positions


@pytest.mark.parametrize("channels", [1, 32, 96, 960])
@pytest.mark.parametrize("width", [1, 2, 7, 112])
def test_depthwise_tiles_have_eight_or_four_elements_a_thread_and_at_most_a_cache_line_of_channels(channels, width):
    configs = depthwise_configs(channels, width)
    assert configs
    assert len(set(map(str, configs))) == len(configs)
    for config in configs:
        assert config.block_m * config.block_c in (256 * config.num_warps, 128 * config.num_warps)
        assert config.block_c <= 64
        assert config.block_c < 2 * channels
        assert config.strip <= width
