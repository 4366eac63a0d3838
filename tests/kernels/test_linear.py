"""The matrix kernels against the float64 reference: every shipped tile, odd sizes, every epilogue operand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton", reason="the kernels need Triton")


from tests.properties import examples
from unit_fast.kernels import linear as linear_module
from unit_fast.kernels.configs import LINEAR
from unit_fast.kernels.conv2d import conv2d
from unit_fast.kernels.launch import capability_of
from unit_fast.kernels.linear import linear
from unit_fast.kernels.reference import ACTIVATION_DEFAULTS, linear_ref

# bfloat16 on a GPU only: the interpreter's bfloat16 products are wrong (Triton 3.6 and 3.9)
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])]
TMA, POINTER, STREAM = (next(c for c in LINEAR[90] if c.loader == loader) for loader in ("tma", "pointer", "stream"))
BATCHES = ((1,), (6,), (42,), (123,), (1, 1), (3, 7), (2, 5, 13))


@examples(50)
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_any_combination_agrees_with_the_reference(data, dtype, randn, agree, device):
    batch = data.draw(st.sampled_from(BATCHES), label="batch")
    n = data.draw(st.sampled_from([1, 10, 33, 64, 130]), label="n")
    k = data.draw(st.sampled_from([1, 3, 40, 64, 136, 217]), label="k")
    sample = (*batch[1:], n)
    x, weight = randn((*batch, k), dtype, 0), randn((n, k), dtype, 1, k**-0.5)
    usable = capability_of(x)
    runs = {"tma": k * x.element_size() % 16 == 0, "pointer": True}
    configs = [
        c
        for c in LINEAR[90 if usable >= 90 else 80]
        if runs.get(c.loader, c.float32 >= (dtype == torch.float32) and k <= c.k_of(x.element_size()))
    ]
    config = data.draw(st.none() | st.sampled_from(configs), label="config")
    shapes = [(), (n,), sample, (*batch[1:], 1)]
    bound = data.draw(st.none() | st.sampled_from(shapes), label="bound")
    bias = randn((n,), dtype, 2) if data.draw(st.booleans(), label="bias") else None
    residual = randn((*batch, n), dtype, 3) if data.draw(st.booleans(), label="residual") else None
    bound = None if bound is None else randn(bound, dtype, 4)
    act = data.draw(st.sampled_from(sorted(ACTIVATION_DEFAULTS)), label="act")
    counts = torch.zeros(batch[0], dtype=torch.int32, device=device) if bound is not None else None
    y = linear(x, weight, bias, residual, bound, act, counts=counts, config=config)
    agree(y, linear_ref, x, weight, bias, residual, bound, act)
    if bound is not None:
        above = linear(x, weight, bias, residual, None, act, config=config) > bound
        assert torch.equal(counts, above.reshape(batch[0], -1).sum(1).int())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", dict.fromkeys(c for table in LINEAR.values() for c in table), ids=str)
def test_every_shipped_tile(config, dtype, randn, agree, device):
    if config.loader == "tma" and device.type == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("TMA needs compute capability 9.0")
    m, n, k = config.block_m + 5, config.block_n + 8, 2 * config.block_k + 8  # a full tile and a ragged one each way
    if config.loader == "stream":  # which has one step, and walks over several tiles
        m, k = 9 * config.block_m + 5, config.k_of(dtype.itemsize) - 8
    x, weight, bias = randn((m, k), dtype, 0), randn((n, k), dtype, 1, k**-0.5), randn((n,), dtype, 2)
    residual, bound = randn((m, n), dtype, 3), randn((n,), dtype, 4)
    y = linear(x, weight, bias, residual, bound, "relu", config=config)
    agree(y, linear_ref, x, weight, bias, residual, bound, "relu")


@pytest.mark.parametrize("config", [TMA, POINTER, STREAM], ids=["tma", "pointer", "stream"])
def test_nan_and_infinity_pass_through_the_epilogue(config, device):
    x = torch.eye(16, device=device, dtype=torch.float16)
    bias = torch.tensor([math.nan, math.inf, -math.inf, 1.0] * 4, device=device)
    y = linear(x, torch.zeros_like(x), bias, bound=torch.full((16,), 0.5, device=device), config=config)
    expected = torch.tensor([math.nan, 0.5, -math.inf, 0.5] * 4, device=device, dtype=torch.float16).expand(16, 16)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("config", [POINTER, STREAM], ids=["pointer", "stream"])
@pytest.mark.parametrize(("k", "step"), [(9, 16), (24, 32), (64, 64)])
def test_a_step_is_no_wider_than_the_sum(k, step, config, randn, agree, launches):
    launched = launches(linear_module, f"_linear_{config.loader}_kernel")
    x, weight = randn((70, k), torch.float16, 0), randn((33, k), torch.float16, 1, 0.2)
    agree(linear(x, weight, config=config), linear_ref, x, weight)
    assert [options["BLOCK_K"] for _, options in launched] == [step]


def test_a_stream_is_for_sums_of_one_step_over_rows_in_order(randn):
    x, weight = randn((2, 72, 5, 5), torch.float16, 0), randn((8, 72, 1, 1), torch.float16, 1)
    with pytest.raises(ValueError, match="up to 64 products over rows in order, and these are of 72"):
        conv2d(x, weight, config=STREAM)
    with pytest.raises(ValueError, match=r"stride \(2, 2\); take a pointer configuration"):
        conv2d(x[:, :64], weight[:, :64], stride=(2, 2), config=STREAM)


def test_non_contiguous_operands(randn, agree):
    x, weight = randn((24, 9), torch.float32, 0).T, randn((24, 10), torch.float32, 1, 0.2).T
    agree(linear(x, weight), linear_ref, x, weight)


def test_operands_that_tma_cannot_address_take_the_pointer_loader(randn, agree):
    x, weight = randn((33, 25), torch.float16, 0)[:, 1:].clone(), randn((17, 25), torch.float16, 1, 0.2)
    shifted = randn((33 * 24 + 1,), torch.float16, 2)[1:].view(33, 24)  # rows of 48 bytes, but starting at byte 2
    weight = weight[:, 1:].clone()
    agree(linear(shifted, weight), linear_ref, shifted, weight)
    with pytest.raises(ValueError, match="take a pointer configuration"):
        linear(shifted, weight, config=TMA)
    agree(linear(x, weight, config=TMA), linear_ref, x, weight)


def test_empty_batch_and_empty_sum(device):
    assert linear(torch.empty(0, 4, device=device), torch.empty(3, 4, device=device)).shape == (0, 3)
    with pytest.raises(ValueError, match="no elements"):
        linear(torch.empty(2, 0, device=device), torch.empty(3, 0, device=device))


def test_more_rows_than_coordinates_are_refused(device):
    with pytest.raises(ValueError, match="split the batch"):
        linear(torch.empty(1, 4, device=device).expand(2**31, 4), torch.empty(3, 4, device=device))
