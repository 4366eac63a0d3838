"""What torch rounds to while it computes, which the dtype of a result does not always tell."""

import torch


def least_precise(is_cuda: bool, *dtypes: torch.dtype) -> torch.dtype:
    """The coarsest of ``dtypes`` as they are computed in, on CUDA or not.

    float16 stands for TF32, whose mantissa it has: torch multiplies float32 so on CUDA where it is allowed to, as in
    convolutions unless told otherwise.
    """
    by_tf32 = is_cuda and torch.float32 in dtypes and _tf32_allowed()
    return max((*dtypes, *([torch.float16] if by_tf32 else [])), key=_epsilon)


def _epsilon(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0


def _tf32_allowed() -> bool:
    # torch.backends.cudnn is replaced at import by an object that mypy does not see
    backends = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    return any(backend.fp32_precision == "tf32" for backend in backends)
