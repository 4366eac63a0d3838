"""What the operators refuse, and that fake tensors are refused just so."""

from __future__ import annotations

import pytest
import torch

from unit_fast.kernels import ops
from unit_fast.kernels.checks import conv_size

Z = torch.zeros
X, W = Z(2, 4, 6, 6), Z(8, 4, 3, 3)  # conv2d without padding gives (2, 8, 4, 4)

BAD = {
    "epilogue_integer_x": (ops.epilogue, (Z(2, 3).int(),), {}, TypeError, "torch.int32"),
    "epilogue_scale_shape": (ops.epilogue, (Z(2, 3), Z(4)), {}, ValueError, r"scale of shape \(4,\)"),
    "epilogue_bias_shape": (ops.epilogue, (Z(2, 3),), {"bias": Z(2, 3)}, ValueError, "bias"),
    "epilogue_residual_shape": (ops.epilogue, (Z(2, 3),), {"residual": Z(3)}, ValueError, r"output's shape \(2, 3\)"),
    "epilogue_residual_dtype": (ops.epilogue, (Z(2, 3),), {"residual": Z(2, 3).half()}, TypeError, "torch.float16"),
    "epilogue_unknown_activation": (ops.epilogue, (Z(2, 3),), {"act": "sine"}, ValueError, "sine.*relu"),
    "epilogue_activation_arguments": (
        ops.epilogue,
        (Z(2, 3),),
        {"act": "hardtanh", "act_args": [1.0]},
        ValueError,
        "hardtanh takes 2",
    ),
    "linear_inner_size": (ops.linear, (Z(2, 3), Z(5, 4)), {}, ValueError, "same K"),
    "linear_no_batch": (ops.linear, (Z(3), Z(5, 3)), {}, ValueError, "batch"),
    "linear_weight_dtype": (ops.linear, (Z(2, 3), Z(5, 3).double()), {}, TypeError, "autocast"),
    "linear_bias_size": (ops.linear, (Z(2, 3), Z(5, 3), Z(3)), {}, ValueError, r"expected \(5,\)"),
    "linear_bound_of_the_input": (ops.linear, (Z(2, 3), Z(5, 3)), {"bound": Z(3)}, ValueError, "one sample"),
    "linear_weight_device": (ops.linear, (Z(2, 3), Z(5, 3, device="meta")), {}, ValueError, "weight on meta"),
    "conv2d_rank": (ops.conv2d, (Z(4, 6, 6), W), {}, ValueError, r"\(B, C, H, W\)"),
    "conv2d_channels": (ops.conv2d, (Z(2, 3, 6, 6), W), {}, ValueError, "3 channels in"),
    "conv2d_groups": (ops.conv2d, (X, W), {"groups": 3}, ValueError, "3 groups"),
    "conv2d_kernel_too_large": (ops.conv2d, (Z(2, 4, 2, 2), W), {}, ValueError, "does not fit a map"),
    "conv2d_stride": (ops.conv2d, (X, W), {"stride": (0, 1)}, ValueError, "stride"),
    "conv2d_padding": (ops.conv2d, (X, W), {"padding": (-1, 1)}, ValueError, "padding"),
    "conv2d_bound_of_the_input": (ops.conv2d, (X, W), {"bound": Z(4, 6, 6)}, ValueError, r"\(8, 4, 4\)"),
    "conv2d_bound_misplaced": (ops.conv2d, (X, W), {"bound": Z(8)}, ValueError, r"\(C, 1, 1\)"),
    "conv2d_residual_broadcast": (ops.conv2d, (X, W), {"residual": Z(1, 8, 4, 4)}, ValueError, "output's shape"),
}


@pytest.mark.parametrize("where", ["cpu", "meta"])
@pytest.mark.parametrize(("op", "args", "kwargs", "error", "words"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused(where, op, args, kwargs, error, words):
    if where == "meta":
        if words == "weight on meta":
            pytest.skip("on meta both operands are on one device")
        args = tuple(a.to("meta") for a in args)
        kwargs = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    with pytest.raises(error, match=words):
        op(*args, **kwargs)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation"), [(7, 3, 2, 1, 1), (8, 3, 1, 2, 2), (5, 5, 3, 0, 1)]
)
def test_conv_size_agrees_with_torch(size, kernel, stride, padding, dilation):
    y = torch.nn.functional.conv1d(Z(1, 1, size), Z(1, 1, kernel), None, stride, padding, dilation)
    assert y.shape[-1] == conv_size(size, kernel, stride, padding, dilation)
