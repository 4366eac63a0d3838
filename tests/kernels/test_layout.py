"""How operands are classified and packed, and what is copied."""

from __future__ import annotations

import pytest
import torch

from unit_fast.kernels.layout import check_kernel_operands, pack_bound, pack_weight, per_sample, sample_in_memory_order

KINDS = {  # id: (shape, sample, channels_last, kind)
    "scalar": ((), (5, 7, 6), True, "tensor"),
    "ones": ((1, 1, 1), (5, 7, 6), False, "tensor"),
    "channel_nhwc": ((5, 1, 1), (5, 7, 6), True, "channel"),
    "channel_nchw": ((5, 1, 1), (5, 7, 6), False, "outer_channel"),
    "column_nchw": ((6,), (5, 7, 6), False, "channel"),
    "row_nhwc": ((7, 1), (5, 7, 6), True, "outer_channel"),
    "column_nhwc": ((6,), (5, 7, 6), True, "neuron"),
    "neuron": ((5, 7, 6), (5, 7, 6), True, "neuron"),
    "feature": ((9,), (9,), False, "channel"),
    "token": ((4, 1), (4, 9), False, "outer_channel"),
    "one_channel": ((1, 7, 6), (1, 7, 6), True, "neuron"),
}


@pytest.mark.parametrize(("shape", "sample", "channels_last", "kind"), KINDS.values(), ids=KINDS)
def test_operands_are_classified_by_what_they_vary_along(shape, sample, channels_last, kind):
    values = torch.randn(shape)
    operand = per_sample(values, sample, channels_last)
    assert operand.kind == kind
    assert operand.values is not None
    assert operand.values.is_contiguous()
    whole = values.expand(sample)
    ordered = whole.permute(1, 2, 0) if channels_last else whole
    trailing = (1,) * (len(sample) - 1)
    got = operand.values.reshape(-1, *trailing) if kind == "outer_channel" else operand.values
    assert torch.equal(got.expand(ordered.shape), ordered)


def test_no_operand():
    assert per_sample(None, (3,), channels_last=False) == ("none", None)


def test_memory_order_of_a_sample():
    assert sample_in_memory_order((5, 7, 6), channels_last=True) == (7, 6, 5)
    assert sample_in_memory_order((5, 7, 6), channels_last=False) == (5, 7, 6)
    assert sample_in_memory_order((), channels_last=False) == ()


def test_packed_bound_is_the_same_bound_and_is_read_where_it_lies():
    bound = torch.randn(5, 7, 6)
    packed = pack_bound(bound)
    assert torch.equal(packed, bound)
    operand = per_sample(packed, (5, 7, 6), channels_last=True)
    assert operand.kind == "neuron"
    assert operand.values is not None
    assert operand.values.data_ptr() == packed.data_ptr()
    assert pack_bound(packed).data_ptr() == packed.data_ptr()


def test_packing_casts():
    assert pack_bound(torch.ones(3), torch.float16).dtype == torch.float16


@pytest.mark.parametrize(("shape", "groups"), [((6, 4, 3, 2), 1), ((6, 1, 3, 2), 6), ((6, 2, 3, 2), 3)], ids=str)
def test_packed_weight_is_the_same_weight(shape, groups):
    weight = torch.randn(shape)
    packed = pack_weight(weight, groups)
    assert torch.equal(packed, weight)
    order = (2, 3, 1, 0) if groups == 6 else (0, 2, 3, 1)
    assert packed.permute(order).is_contiguous()


def test_sample_above_two_to_the_31_is_refused():
    with pytest.raises(ValueError, match="2³¹"):
        check_kernel_operands("epilogue", torch.zeros(1), (2**16, 2**15, 1))
    check_kernel_operands("epilogue", torch.zeros(1), (2**16, 2**15 - 1, 1))
