"""sanitize(): the drop-in module that serves in place of the model."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from unit_fast.bounds import Bounds, require_bounds
from unit_fast.capture import Example, batch_size, call_arguments, capture
from unit_fast.errors import CaptureError
from unit_fast.runtime.backends import Backend, choose, runner
from unit_fast.sites import find_sites, insert_bounds


def sanitize(
    model: nn.Module | torch.export.ExportedProgram,
    bounds: Bounds,
    example_input: Example,
    backend: Backend = "auto",
    dtype: torch.dtype | None = None,
) -> "SanitizedModel":
    """The sanitised model: called as ``model`` is, every bounded activation clamped.

    Args:
        model: the network the bounds were fitted on, on the device it shall run on. It stays as it is; its weights
            are shared unless ``dtype`` changes them.
        bounds: from :func:`unit_fast.calibrate` or :meth:`unit_fast.Bounds.load`.
        example_input: what the model is called with, see :func:`unit_fast.capture.capture`; one sample is
            enough.
        backend: "eager" runs the graph as it is and passes gradients; "compile" runs it through torch.compile with
            frozen weights, for inference only; "auto" takes the fastest that can run on the device and says once when
            it had to fall back. One that is named and cannot run raises.
        dtype: of weights, bounds and floating-point inputs, e.g. ``torch.float16``; the model's own when omitted.

    Raises:
        CaptureError: the model has no plain graph.
        BoundsMismatchError: the bounds belong to another model; lists the differences.
        BackendUnavailableError: the backend cannot run here.
    """
    require_bounds(bounds)
    captured = capture(model, example_input)
    bounds.require_model(captured.meta["fingerprint"], find_sites(captured))
    args, kwargs = call_arguments(example_input)
    device = _device(captured, args, kwargs)
    chosen = choose(backend, device)
    graph_module = insert_bounds(captured, {name: bound.to(device) for name, bound in bounds.items()})
    if dtype is not None:
        if not dtype.is_floating_point:
            raise CaptureError(f"dtype is {dtype}; expected a floating-point type such as torch.float16")
        graph_module = graph_module.to(dtype)
    return SanitizedModel(graph_module, bounds, chosen, dtype, (args, kwargs))


class SanitizedModel(nn.Module):
    """What :func:`sanitize` returns.

    Attributes:
        graph_module: the sanitised graph, the reference that every backend is compared with.
        bounds: the bounds in it, as they were given.
        backend: what runs it: "eager" or "compile".
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        bounds: Bounds,
        backend: Backend,
        dtype: torch.dtype | None,
        example: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> None:
        super().__init__()
        self.graph_module = graph_module
        self.bounds = bounds
        self.backend = backend
        self._dtype = dtype
        self._sample = _first_sample(example)
        self._runner: Callable[..., Any] | None = None
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Called as the model is; floating-point inputs are cast to the dtype chosen in :func:`sanitize`."""
        if self._dtype is not None:
            args, kwargs = pytree.tree_map(self._cast, (args, kwargs))
        if self.backend == "eager":
            return self.graph_module(*args, **kwargs)
        if self._runner is None:
            self._runner = runner(self.backend, self.graph_module)
        return self._runner(*args, **kwargs)

    def warmup(self, batch_sizes: Sequence[int] = (1,)) -> "SanitizedModel":
        """Compile for these batch sizes now, so that no request pays for it; returns self.

        Args:
            batch_sizes: positive, each run twice on inputs like ``example_input``.
        """
        for size in batch_sizes:
            if size < 1:
                raise CaptureError(f"batch size {size} cannot be warmed up; expected at least 1")
            args, kwargs = _repeated(self._sample, size, _device(self.graph_module, *self._sample))
            with torch.no_grad():
                for _ in range(2):
                    self(*args, **kwargs)
        return self

    def extra_repr(self) -> str:
        """Shown by ``print``: backend, granularity and number of bounds."""
        return f"backend={self.backend}, {len(self.bounds)} sites, bounds per {self.bounds.granularity}"

    def __getstate__(self) -> dict[str, Any]:
        # A copy compiles for its own weights.
        return {**self.__dict__, "_runner": None}

    def _cast(self, leaf: Any) -> Any:
        return leaf.to(self._dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _device(module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    tensors = [*module.parameters(), *module.buffers(), *pytree.tree_leaves((args, kwargs))]
    return next(tensor.device for tensor in tensors if isinstance(tensor, Tensor))


def _first_sample(example: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    size = batch_size(*example)

    def first(leaf: Any) -> Any:
        batched = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size
        return leaf[:1].detach().clone() if batched else leaf

    sample: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(first, example)
    return sample


def _repeated(sample: tuple[tuple[Any, ...], dict[str, Any]], size: int, device: torch.device) -> Any:
    def repeat(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        batched = leaf.ndim > 0 and leaf.shape[0] == 1
        return (leaf.expand(size, *leaf.shape[1:]).contiguous() if batched else leaf).to(device)

    return pytree.tree_map(repeat, sample)
