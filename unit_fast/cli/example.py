"""What a model is called with: one batch, from whatever the command line tells of it."""

from pathlib import Path

import torch

from unit_fast.capture import Example
from unit_fast.cli.data import Batches, open_samples, parse_normalisation
from unit_fast.errors import DataError


def example_input(
    model: object, data: Path | None, input_shape: str | None, size: str | None, mean: str | None, std: str | None
) -> Example:
    """One batch for the model: of its data, of the shape given, or the one its archive carries.

    Raises:
        DataError: none of the three is there, or the shape is no shape.
    """
    if data is not None:
        return Batches(open_samples(data, size), 2, parse_normalisation(mean, std)).example()
    if input_shape is not None:
        try:
            shape = [int(part) for part in input_shape.split("x")]
        except ValueError as error:
            raise DataError(f"--input-shape {input_shape}: expected whole numbers, such as 3x32x32") from error
        if min(shape) < 1:
            raise DataError(f"--input-shape {input_shape}: expected numbers above 0")
        # In [0, 1] like pixels; any values do, since verification scales them until bounds are reached.
        return torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    if isinstance(model, torch.export.ExportedProgram) and model.example_inputs is not None:
        args, kwargs = model.example_inputs
        return kwargs if kwargs and not args else tuple(args)
    raise DataError("the model's input is unknown; give --data (some real samples, best) or --input-shape 3x32x32")
