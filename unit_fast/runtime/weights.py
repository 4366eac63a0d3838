"""Whether the tensors of a graph are still what was compiled."""

import operator

from torch import nn

_version = operator.attrgetter("_version")


class Weights:
    """The parameters and buffers of a module as they are when this is made.

    torch counts the changes of a tensor in place, but not those through ``.data`` or NumPy, nor any of an inference
    tensor.
    """

    def __init__(self, module: nn.Module) -> None:
        self._places = [
            (tensors, name, tensor)
            for owner in module.modules()
            for tensors in (owner._parameters, owner._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        self._counted = [tensor for _, _, tensor in self._places if not tensor.is_inference()]
        self._changes = self._count()
        self.kind = [(tensor.device, tensor.dtype) for _, _, tensor in self._places]
        """Device and dtype of each."""

    def unchanged(self) -> bool:
        """Whether none was changed in place or replaced since. 4 µs for 60 tensors."""
        for tensors, name, tensor in self._places:
            if tensors.get(name) is not tensor:
                return False
        return self._count() == self._changes

    def _count(self) -> int:
        # One sum tells whether any was changed: a change only ever raises it.
        return sum(map(_version, self._counted))
