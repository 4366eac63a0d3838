"""SanitizedModel: an nn.Module, called as the model it protects."""

import copy
import dataclasses
import math
import operator
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from unit_fast.bounds import Bounds
from unit_fast.calibration.readings import clean_readings
from unit_fast.errors import SizeWarning, UnitFastError
from unit_fast.fusion.gather_on_one_device import make_in, make_on
from unit_fast.fusion.read_clamps import neurons_per_sample
from unit_fast.runtime.backends import RUNNERS, Backend, choose
from unit_fast.runtime.calls import Call
from unit_fast.runtime.clean_samples import clean_batches
from unit_fast.runtime.compiled import Compiled
from unit_fast.runtime.eager import Eager
from unit_fast.runtime.explain import as_text
from unit_fast.runtime.program import Program
from unit_fast.runtime.runner import Inspector, Runner
from unit_fast.runtime.weights import Weights
from unit_fast.threshold import measures, saturation, threshold, unusable, usual_excess


class SanitizedModel(nn.Module):
    """What :func:`unit_fast.sanitize` returns: in evaluation mode always, safe to call from several threads.

    Its weights are its own, and may change (``load_state_dict``, ``.to``, ``.half``, in place): what was compiled for
    the old ones is then made anew at the next call. A deep copy compiles for itself. Inside ``torch.compile`` and
    ``torch.export`` it is the plain sanitised graph.

    Attributes:
        graph_module: the sanitised graph, the reference that every backend is compared with.
        bounds: the bounds in it, as they were given.
        backend: what runs it: "auto" (where it has a choice), "triton", "onnxruntime", "openvino", "compile"
            or "eager".
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        bounds: Bounds,
        backend: Backend,
        dtype: torch.dtype | None,
        example: Call,
    ) -> None:
        super().__init__()
        self.graph_module = graph_module
        self.bounds = bounds
        self._wanted = backend
        self._dtype = dtype
        self._example = example if dtype is None else example.map_tensors(self._cast)
        self._sizes: list[tuple[int, ...]] | None = _sizes(example.args, example.kwargs)
        self._infinities = any(bool(tensor.isinf().any()) for tensor in example.tensors())  # as masks have
        self._lock = threading.Lock()
        self._built: tuple[Weights, Runner] | None = None
        self._fixed = False
        self._beside: tuple[Runner, Inspector] | None = None
        self._usual: tuple[Bounds, torch.device, Tensor] | None = None
        self.backend = choose(self._wanted, self._device(), self._weights_dtype())
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Called as the model is; floating-point inputs are cast to the dtype chosen in :func:`unit_fast.sanitize`."""
        args, kwargs = self._cast_all(args), self._cast_all(kwargs)
        if torch.compiler.is_compiling():
            return self.graph_module(*args, **kwargs)
        output = self._runner()(*args, **kwargs)
        self._look_at_sizes(args, kwargs, stacklevel=5)  # two of nn.Module's lie between
        return output

    def warmup(
        self, batch_sizes: Iterable[int] = (1,), *, monitor: bool = False, inspect: bool = False
    ) -> "SanitizedModel":
        """Do now what the first call of these batch sizes would have to do: compile, verify, measure; returns self.

        Args:
            batch_sizes: positive. On the CPU the first four above 1 are each compiled alone, which may take the
                weights' memory once more; all others share what is compiled.
            monitor: the same for :meth:`monitor`.
            inspect: the same for :meth:`inspect`.

        Raises:
            UnitFastError: they are no positive whole numbers.
        """
        sizes = _checked_sizes(batch_sizes)
        self._runner().warmup(sizes, monitor)
        if inspect:
            self._inspector().warm_inspect(sizes)
        return self

    def monitor(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """The output and, per sample, the share of neurons above their bound: (N,) float32 in [0, 1].

        Called as the model is. The share is counted in the same pass; NaN lies above nothing, so a sample of NaN has a
        share of 0. :meth:`inspect` tells triggers better, and NaN.
        """
        output, counts = self._runner().monitor(*self._cast_all(args), **self._cast_all(kwargs))
        self._look_at_sizes(args, kwargs)
        return output, saturation(counts, self._neurons)

    def inspect(self, *args: Any, **kwargs: Any) -> tuple[Any, Mapping[str, Tensor]]:
        """The output and, per sample, two measures of what the clamps took away, (N,) float32 each.

        "saturation" is that of :meth:`monitor`. "excess" is how far the worst activation lies above its bound, in units
        of what is usual for clean samples at its site: a trigger drives few neurons, but far (docs/runtime.md has the
        figures). It is infinite for a sample with NaN in its input or activations, and for one with infinite inputs
        unless those of the example are too. It needs bounds with clean readings; without them it is missing. Runs by
        torch.compile where that is possible, whatever the backend, else eagerly.
        """
        output, counts, excess = self._inspector().inspect(*self._cast_all(args), **self._cast_all(kwargs))
        self._look_at_sizes(args, kwargs)
        bad = unusable(pytree.tree_leaves((args, kwargs)), self._infinities, len(excess), excess.device)
        if bad is not None:
            excess = excess.masked_fill(bad[:, None], math.inf)
        return output, measures(counts, excess, self._usual_excess(excess.device), self._neurons)

    def threshold(self, fpr: float = 0.01, of: str = "saturation") -> float:
        """The value of a measure that a clean sample exceeds with probability ``fpr`` at most.

        From the clean samples that :func:`unit_fast.calibrate` held out, or those of :meth:`fit_threshold`.

        Args:
            fpr: false alarms allowed, a share of clean samples; n samples allow 1 / (n + 1) and more.
            of: "saturation", which :meth:`monitor` returns, or "excess", which :meth:`inspect` does.

        Raises:
            DataError: the bounds hold no clean readings, or of too few samples for ``fpr``.
            UnitFastError: ``fpr`` or ``of`` is out of range.
        """
        return threshold(self.bounds, self._neurons, fpr, of)

    def fit_threshold(self, loader: Iterable[Any]) -> "SanitizedModel":
        """Learn what is usual from clean samples; returns self. ``bounds.save`` then keeps it.

        Args:
            loader: batches ``(x, y)`` or ``x`` of clean samples, preferably none that bounds were fitted on.

        Raises:
            DataError: the loader gives nothing usable: no batches, NaN or infinite values, or shapes that the model
                does not take.
        """
        batches = clean_batches(loader, self._example, self._infinities, self._device(), self._cast)
        self.bounds = dataclasses.replace(self.bounds, readings=clean_readings(self.graph_module, batches))
        return self

    def explain(self) -> str:
        """What runs each site, and why, as a table."""
        title = f"{len(self.bounds)} sites, bounds per {self.bounds.granularity}, backend {self.backend}"
        return as_text(title, self._runner().explain())

    def run_by(self, runner: Runner, backend: Backend) -> None:
        """Run by ``runner``, called ``backend``, and nothing else; a change of the weights is then an error."""
        self._built, self._fixed, self.backend = (Weights(self.graph_module), runner), True, backend

    def train(self, mode: bool = True) -> "SanitizedModel":  # noqa: ARG002 - nn.Module's signature
        """Stays in evaluation mode: capture has removed all that training needs."""
        return super().train(False)

    def extra_repr(self) -> str:
        """Shown by ``print``: backend, granularity and number of bounds."""
        return f"backend={self.backend}, {len(self.bounds)} sites, bounds per {self.bounds.granularity}"

    def __deepcopy__(self, memo: dict[int, Any]) -> "SanitizedModel":
        return self._copy(lambda value: copy.deepcopy(value, memo))

    def __copy__(self) -> "SanitizedModel":
        return self._copy(copy.copy)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise UnitFastError(
            "a sanitised model cannot be pickled: it holds compiled code of this machine, and unpickling would run "
            "code from a file. Keep the model and the bounds file (bounds.save), and call sanitize() where it is "
            "loaded; or export it with export_onnx"
        )

    def _copy(self, copied: Callable[[Any], Any]) -> "SanitizedModel":
        clone = type(self).__new__(type(self))
        own = {"_built": None, "_beside": None, "_usual": None, "_lock": threading.Lock(), "bounds": self.bounds}
        built = self._current() if self._fixed else None
        clone.__dict__.update({name: own[name] if name in own else copied(value) for name, value in vars(self).items()})
        if built is not None:
            clone.run_by(built, self.backend)
        return clone

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SanitizedModel":
        # What .to, .half and their like go through. A backend that cannot follow says so before anything is converted.
        probe = fn(torch.empty(0, device=self._device(), dtype=self._weights_dtype()))
        backend = choose(self._wanted, probe.device, probe.dtype)
        built, before, dtype = self._current(), Weights(self.graph_module).kind, self._weights_dtype()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._example = self._example.map_tensors(fn)
        make_on(self.graph_module, self._device())
        make_in(self.graph_module, dtype, self._weights_dtype())
        if self._dtype is not None:
            self._dtype = self._weights_dtype()
        after = Weights(self.graph_module)
        self._built = None if built is None or after.kind != before else (after, built)
        self.backend = self.backend if self._fixed else backend
        return self

    def _look_at_sizes(self, args: tuple[Any, ...], kwargs: dict[str, Any], stacklevel: int = 3) -> None:
        """Warn, once, of inputs that the graph may be wrong for: it has the sizes of the example in it."""
        expected = self._sizes
        if expected is None or (sizes := _sizes(args, kwargs)) == expected:
            return
        self._sizes = None
        warnings.warn(
            f"a sample of shape {' and '.join(map(str, sizes))} came, and the example's was "
            f"{' and '.join(map(str, expected))}. What the model does by size, such as an interpolation to it or a "
            "branch on it, is done as for the example: sanitize with an example of this size, unless the model does "
            "the same for all",
            SizeWarning,
            stacklevel=stacklevel,
        )

    def _runner(self) -> Runner:
        current = self._current()
        if current is not None:
            return current
        if self._fixed:
            raise UnitFastError(
                "the weights have changed, and int8 was fitted to the old ones; sanitize the changed model again"
            )
        with self._lock:
            current = self._current()
            if current is None:
                weights = Weights(self.graph_module)
                current = RUNNERS[self.backend](Program(self.graph_module, self.bounds, self._example))
                self._built = weights, current
        return current

    def _current(self) -> Runner | None:
        """What was built, if it was for the weights as they are."""
        built = self._built
        return built[1] if built is not None and built[0].unchanged() else None

    def _device(self) -> torch.device:
        tensors = (*self.graph_module.parameters(), *self.graph_module.buffers(), *self._example.tensors())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    @cached_property
    def _neurons(self) -> int:
        return neurons_per_sample(self.graph_module)

    def _usual_excess(self, device: torch.device) -> Tensor | None:
        if self.bounds.readings is None:
            return None
        known = self._usual
        if known is None or known[0] is not self.bounds or known[1] != device:
            known = self._usual = self.bounds, device, usual_excess(self.bounds).to(device)
        return known[2]

    def _inspector(self) -> Inspector:
        runner = self._runner()
        if hasattr(runner, "inspect"):
            return cast(Inspector, runner)
        with self._lock:
            if self._beside is None or self._beside[0] is not runner:
                able = Compiled.unavailable(self._device(), self._weights_dtype()) is None
                program = Program(self.graph_module, self.bounds, self._example)
                self._beside = runner, (Compiled(program) if able else Eager(program))
            return self._beside[1]

    def _weights_dtype(self) -> torch.dtype:
        floating = (tensor.dtype for tensor in self.graph_module.parameters() if tensor.is_floating_point())
        return next(floating, self._dtype or torch.float32)

    def _cast(self, leaf: Any) -> Any:
        floating = self._dtype is not None and isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.to(self._dtype) if floating else leaf

    def _cast_all(self, values: Any) -> Any:
        return values if self._dtype is None else pytree.tree_map(self._cast, values)


def _sizes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[int, ...]]:
    """The shapes of one sample of the inputs, for all batch sizes alike."""
    return sorted(tuple(given.shape[1:]) for given in (*args, *kwargs.values()) if isinstance(given, Tensor))


def _checked_sizes(batch_sizes: Any) -> list[int]:
    advice = "expected positive whole numbers, such as warmup([1, 32])"
    if not isinstance(batch_sizes, Iterable) or isinstance(batch_sizes, str | bytes):
        raise UnitFastError(f"warmup was given {batch_sizes!r}; {advice}")
    sizes = list(batch_sizes)
    for position, size in enumerate(sizes):
        try:
            sizes[position] = 0 if isinstance(size, bool) else operator.index(size)
        except TypeError:
            sizes[position] = 0
        if sizes[position] < 1:
            raise UnitFastError(f"batch size {size!r} cannot be warmed up; {advice}")
    return sizes
