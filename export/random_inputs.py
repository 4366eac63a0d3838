"""Inputs that any exported file takes, drawn at random."""

import numpy as np

from unit_fast.errors import DataError
from unit_fast.export.session import OnnxRuntimeModel

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def random_inputs(model: OnnxRuntimeModel, batch: int, scale: float | None = None) -> dict[str, np.ndarray]:
    """Inputs of the shapes and types that the file takes, by name, the same every time.

    Args:
        model: the file.
        batch: number of samples.
        scale: standard deviation of what is a float; uniform in [0, 1) when omitted, as pixels are. Whole numbers are
            0, which indexes anything.

    Raises:
        DataError: a dimension besides the batch is free, or there are no random values of a type.
    """
    generator = np.random.default_rng(0)
    inputs = {}
    for value in model.session.get_inputs():
        shape = [batch if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(value.shape)]
        if not all(isinstance(size, int) for size in shape):
            raise DataError(f"input {value.name} has the shape {value.shape}; only its batch may be free to run it")
        dtype = _DTYPES.get(value.type)
        if dtype is None:
            raise DataError(f"input {value.name} is {value.type}, for which there are no random values")
        drawn = generator.random(shape) if scale is None else scale * generator.standard_normal(shape)
        inputs[value.name] = (drawn if np.issubdtype(dtype, np.floating) else np.zeros(shape)).astype(dtype)
    return inputs
