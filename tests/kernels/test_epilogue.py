"""The one epilogue, by itself: activations and clamp on float32, where a tile is stored, and in how many parts."""

from __future__ import annotations

import math
import traceback

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton")

import triton
import triton.language as tl

from unit_fast.kernels import epilogue as module
from unit_fast.kernels.configs import activation_constants
from unit_fast.kernels.reference import ACTIVATION_DEFAULTS, activate_ref, epilogue_ref

load_bound, load_residual = module.load_bound, module.load_residual
store_block, store_tile = module.store_block, module.store_tile
activate, clamp = module.activate, module.clamp


@triton.jit
def activate_and_clamp(
    x_ptr, bound_ptr, out_ptr, ACT: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, SIZE: tl.constexpr
):
    at = tl.arange(0, SIZE)
    v = activate(tl.load(x_ptr + at), ACT, ALPHA, BETA)
    tl.store(out_ptr + at, clamp(v, tl.load(bound_ptr + at)))


EDGES = [math.nan, math.inf, -math.inf, -0.0, 0.0, 3.0, -3.0, 6.0, 1e-30, -1e-30, 88.0, -88.0, 1e30, -1e30]


@pytest.mark.parametrize("act", ACTIVATION_DEFAULTS)
def test_activations_are_torch_s_everywhere(act, device):
    edges = torch.tensor(EDGES)
    x = torch.cat([edges, torch.linspace(-12, 12, 1024 - len(EDGES))]).to(device)
    out = torch.empty_like(x)
    activate_and_clamp[(1,)](x, torch.full_like(x, math.inf), out, *activation_constants(act, ()), SIZE=1024)
    expected = activate_ref(x.double(), act).float()
    finite = x.isfinite() | x.isnan()  # torch's own gelu and silu of -inf are NaN, their limits are 0
    torch.testing.assert_close(out[finite], expected[finite], rtol=2e-6, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("act", ["identity", "relu", "relu6", "hardtanh", "leaky_relu", "elu", "hardswish"])
def test_infinities_are_torch_s_where_the_activation_is_piecewise(act, device):
    x = torch.tensor([math.inf, -math.inf], device=device)
    out = torch.empty_like(x)
    activate_and_clamp[(1,)](x, torch.full_like(x, math.inf), out, *activation_constants(act, ()), SIZE=2)
    torch.testing.assert_close(out, activate_ref(x, act), equal_nan=True)


def test_clamp_keeps_nan_ties_and_signs_of_zero(device):
    x = torch.tensor([math.nan, 2.0, 3.0, math.inf, -0.0, 1.0, 5.0, 0.0], device=device)
    bound = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0, -1.0, math.nan, -0.0], device=device)
    out = torch.empty_like(x)
    activate_and_clamp[(1,)](x, bound, out, "identity", 0.0, 0.0, SIZE=8)
    expected = torch.tensor([math.nan, 2.0, 2.0, 2.0, -0.0, -1.0, 5.0, 0.0], device=device)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(out.signbit(), expected.signbit())


def test_unknown_activation_does_not_compile(device):
    x = torch.zeros(2, device=device)
    with pytest.raises(Exception, match=r"activation|activate\(") as refused:  # compiled, the reason is the cause's
        activate_and_clamp[(1,)](x, x, torch.empty_like(x), "sine", 0.0, 0.0, SIZE=2)
    assert "unknown activation" in "".join(traceback.format_exception(refused.value))


@triton.jit
def store_given_tile(
    acc_ptr, first, out_ptr, bias_ptr, residual_ptr, bound_ptr, count_ptr, M, N, sample_rows,
    BOUND: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SUBTILES: tl.constexpr,
):  # fmt: skip
    local = tl.arange(0, BLOCK_M)
    acc = tl.load(acc_ptr + local[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :])
    first = tl.cast(first, tl.int64)
    store_block(
        acc, first, local, local < M - first, 0, N, out_ptr, bias_ptr, residual_ptr, bound_ptr, count_ptr, sample_rows,
        BOUND, "relu", 0.0, 0.0, BLOCK_M, BLOCK_N, SUBTILES,
    )  # fmt: skip


@pytest.mark.parametrize("subtiles", [1, 2, 4])
@pytest.mark.parametrize(
    ("kind", "counted"),
    [("none", False), *((kind, counted) for kind in ("tensor", "channel", "neuron") for counted in (False, True))],
    ids=lambda value: value if isinstance(value, str) else ("counted" if value else "plain"),
)
def test_tile_is_stored_in_its_place_in_any_number_of_parts(subtiles, kind, counted, randn, device):
    """The last tile of 26 rows, 16 to 25, over samples of 5 rows and 50 channels; nothing else is touched."""
    rows, n, first, sample_rows = 26, 50, 16, 5
    acc, out = randn((16, 64), torch.float32, 0), torch.full((rows, n), 7.0, device=device)
    bias, residual = randn((n,), torch.float32, 1), randn((rows, n), torch.float32, 2)
    shape = {"none": None, "tensor": (), "channel": (n,), "neuron": (sample_rows, n)}[kind]
    bound = None if shape is None else randn(shape, torch.float32, 3)
    counts = torch.zeros(6, dtype=torch.int32, device=device) if counted else None
    store_given_tile[(1,)](
        acc, first, out, bias, residual, bound, counts, rows, n, sample_rows, kind, BLOCK_M=16, BLOCK_N=64,
        SUBTILES=subtiles,
    )  # fmt: skip
    assert (out[:first] == 7.0).all()
    stored = acc[: rows - first, :n]
    unclamped = epilogue_ref(stored[None], None, bias, residual[None, first:], None, "relu")[0]
    samples = torch.arange(first, rows, device=device)
    limit = bound if kind != "neuron" or bound is None else bound[samples % sample_rows]
    expected = unclamped if limit is None else torch.minimum(unclamped, limit)
    torch.testing.assert_close(out[first:], expected, rtol=1e-6, atol=1e-6)
    if counts is not None:
        above = (unclamped > limit).sum(1)
        expected_counts = torch.zeros(6, dtype=torch.int64, device=device).index_add_(0, samples // sample_rows, above)
        assert torch.equal(counts.long(), expected_counts)


@triton.jit
def store_last_rows(out_ptr, residual_ptr, bound_ptr, M, N, sample_rows, BLOCK: tl.constexpr):
    first = tl.cast(M, tl.int64) - BLOCK  # 2¹⁹ − 1
    acc = tl.full((BLOCK, 16), 3.0, tl.float32)
    local, cols = tl.arange(0, BLOCK), tl.arange(0, 16)
    row_ok = local < M
    residual = load_residual(residual_ptr, first, local, row_ok, cols, N)
    bound = load_bound(bound_ptr, first, local, row_ok, cols, N, sample_rows, "neuron")
    store_tile(acc, residual, bound, first, local, row_ok, cols, N, out_ptr, None, None, sample_rows, "relu", 0.0, 0.0)


def test_tiles_beyond_two_to_the_31_elements_are_stored_where_they_belong(device):
    """Row 2¹⁹ of rows of 4,096: the offset is 2³¹. Only the pages written take memory."""
    m, n, sample_rows = 2**19 + 3, 4096, 5
    torch.use_deterministic_algorithms(False)  # a poisoned buffer would be written whole
    out = torch.empty(m * n, dtype=torch.float16, device=device)
    out[-8 * n :] = math.nan
    bound = torch.arange(1.0, 6.0, device=device, dtype=torch.float16)[:, None].expand(5, n).contiguous()
    store_last_rows[(1,)](out, None, bound, m, n, sample_rows, BLOCK=4)
    tail = out.view(m, n)[-8:]
    assert tail[:4].isnan().all()
    assert tail[4:, 16:].isnan().all()
    rows = torch.arange(m - 4, m, device=device) % sample_rows
    assert torch.equal(tail[4:, :16], (rows + 1).clamp(max=3).half()[:, None].expand(4, 16))
