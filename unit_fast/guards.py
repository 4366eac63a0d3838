"""What an exported program asks of the batch: torch.export follows the example, and says so in a guard only."""

import re

import torch

from unit_fast.errors import CaptureError

_SIZE = r"L\[.*?\](?:\[.*?\])*\.size\(\)\[0\]"
# What torch.export always asks of a batch, and of inputs that share one; where they are split alike, of their parts.
_USUAL = re.compile(rf"(?:2 <= )?{_SIZE}(?: == {_SIZE})?|\((\d+\*){_SIZE}\) == \(\1{_SIZE}\)")
# What a float32 batch norm on CUDA adds: whether cuDNN takes a batch of that size. Either way computes the same.
_LIBRARY_LIMIT = re.compile(rf"{_SIZE} <= (\d+)")
_LEAST_LIBRARY_LIMIT = 65535


def require_any_batch(program: torch.export.ExportedProgram) -> None:
    """Raise CaptureError where ``program`` holds for some batch sizes only, since the model branches on them."""
    for guard in getattr(program, "_guards_code", ()):
        limit = _LIBRARY_LIMIT.fullmatch(guard)
        usual = _USUAL.fullmatch(guard) or (limit is not None and int(limit[1]) >= _LEAST_LIBRARY_LIMIT)
        if not usual:
            condition = re.sub(r"L\['(.*?)'\]", r"\1", guard).replace(".size()", ".shape")
            raise CaptureError(
                f"the model computes something else for other batch sizes: what the example runs holds only where "
                f"{condition}; a graph has no branches, so compute the same for every size"
            )
