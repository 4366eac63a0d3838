"""The pointwise kernel against the float64 reference: every operand kind, layout and activation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton", reason="the kernels need Triton")

from tests.properties import examples
from unit_fast.kernels import pointwise
from unit_fast.kernels.configs import PointwiseConfig
from unit_fast.kernels.reference import ACTIVATION_DEFAULTS, epilogue_ref, memory_format_of

# bfloat16 on a GPU only: the interpreter's bfloat16 products are wrong (Triton 3.6 and 3.9)
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])]
SAMPLES = {  # id: (sample, a shape per kind of operand)
    "map": ((5, 7, 6), ((), (5, 1, 1), (7, 1), (6,), (1, 7, 6), (5, 7, 6))),
    "narrow_map": ((3, 1, 1), ((), (3, 1, 1))),
    "one_channel": ((1, 5, 5), ((), (1, 1, 1), (1, 5, 5))),
    "tokens": ((5, 19), ((), (19,), (5, 1), (5, 19))),
    "features": ((123,), ((), (123,))),
    "wider_than_a_tile": ((1030,), ((), (1030,))),
    "scalars": ((), ((),)),
}
dtypes = st.sampled_from(DTYPES)


@examples(80)
@given(data=st.data(), dtype=dtypes, batch=st.sampled_from([1, 2, 7]))
def test_any_combination_agrees_with_the_reference(data, dtype, batch, randn, agree):
    sample, shapes = SAMPLES[data.draw(st.sampled_from(sorted(SAMPLES)), label="sample")]
    kinds = st.none() | st.sampled_from(shapes)
    scale, bias, bound = (data.draw(kinds, label=name) for name in ("scale", "bias", "bound"))
    act = data.draw(st.sampled_from(sorted(ACTIVATION_DEFAULTS)), label="act")
    layout = torch.channels_last if len(sample) == 3 and data.draw(st.booleans()) else torch.contiguous_format
    x = randn((batch, *sample), dtype, 0).to(memory_format=layout)
    operands = [None if s is None else randn(s, dtype, i) for i, s in enumerate((scale, bias), 1)]
    operands.append(randn((batch, *sample), dtype, 3) if data.draw(st.booleans(), label="residual") else None)
    operands.append(None if bound is None else randn(bound, dtype, 4))
    y = pointwise.epilogue(x, *operands, act)
    assert y.is_contiguous(memory_format=memory_format_of(x))
    agree(y, epilogue_ref, x, *operands, act)


@pytest.mark.parametrize(
    ("act", "act_args"),
    [("hardtanh", (-0.5, 0.25)), ("leaky_relu", (0.3,)), ("elu", (1.7,))],
    ids=["hardtanh", "leaky_relu", "elu"],
)
def test_activation_arguments(act, act_args, randn, agree):
    x = randn((3, 40), torch.float32, 0)
    agree(pointwise.epilogue(x, act=act, act_args=act_args), epilogue_ref, x, None, None, None, None, act, act_args)


@pytest.mark.parametrize("act", ACTIVATION_DEFAULTS)
def test_nan_stays_nan(act, device):
    x = torch.full((2, 5), math.nan, device=device)
    assert pointwise.epilogue(x, act=act, bound=torch.zeros(5, device=device)).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clamp_is_that_of_the_reference_bit_for_bit(dtype, device):
    values = torch.tensor([math.nan, math.inf, -math.inf, -3.0, -0.0, 0.0, 1.0, 2.0, 65504.0], device=device)
    x, bound = (t.reshape(-1).to(dtype) for t in torch.meshgrid(values, values, indexing="ij"))
    y, expected = pointwise.epilogue(x[None], bound=bound), epilogue_ref(x[None], bound=bound)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(y.signbit(), expected.signbit())


def test_rounded_bound_is_hit_exactly(randn):
    x, bound = randn((8, 64), torch.float16, 0), randn((64,), torch.float32, 1)
    y = pointwise.epilogue(x, bound=bound)
    assert torch.equal(y, epilogue_ref(x, bound=bound))


@pytest.mark.parametrize("loops", [1, 3], ids=["one_tile", "three_tiles"])
def test_programs_walk_down_the_rows(loops, randn, agree):
    x, bound = randn((23, 11), torch.float32, 0), randn((11,), torch.float32, 1)
    y = pointwise.epilogue(x, bound=bound, config=PointwiseConfig(2, 8, loops))
    agree(y, epilogue_ref, x, None, None, None, bound)


def test_non_contiguous_input(randn, agree):
    x = randn((6, 4, 10), torch.float32, 0)[::2].transpose(1, 2)
    agree(pointwise.epilogue(x, act="relu"), epilogue_ref, x, None, None, None, None, "relu")


def test_empty_batch_and_empty_sample(device):
    assert pointwise.epilogue(torch.empty(0, 4, device=device)).shape == (0, 4)
    assert pointwise.epilogue(torch.empty(3, 0, device=device)).shape == (3, 0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("bound_shape", [(), (5, 1, 1), (5, 7, 6)], ids=["tensor", "channel", "neuron"])
def test_saturation_counts(layout, bound_shape, randn, device):
    x = randn((4, 5, 7, 6), torch.float16, 0).to(memory_format=layout)
    bound, residual = randn(bound_shape, torch.float16, 1), randn(x.shape, torch.float16, 2)
    counts = torch.full((4,), 1000, dtype=torch.int32, device=device)
    y = pointwise.epilogue(x, residual=residual, bound=bound, act="relu", counts=counts)
    unclamped = epilogue_ref(x, residual=residual, act="relu")
    assert torch.equal(counts - 1000, (unclamped > bound).flatten(1).sum(1).int())
    assert torch.equal(y, epilogue_ref(x, residual=residual, bound=bound, act="relu"))


@pytest.mark.parametrize(
    ("counts", "bound", "words"),
    [
        pytest.param(torch.zeros(2, dtype=torch.int32), None, "none was given", id="no_bound"),
        pytest.param(torch.zeros(2), torch.zeros(3), "torch.int32", id="dtype"),
        pytest.param(torch.zeros(3, dtype=torch.int32), torch.zeros(3), r"\(2,\)", id="shape"),
    ],
)
def test_bad_counts_are_refused(counts, bound, words):
    with pytest.raises(ValueError, match=words):
        pointwise.epilogue(torch.zeros(2, 3), bound=bound, counts=counts)


def test_float64_is_refused():
    with pytest.raises(TypeError, match="float64"):
        pointwise.epilogue(torch.zeros(2, 3, dtype=torch.float64))
