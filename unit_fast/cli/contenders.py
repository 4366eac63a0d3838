"""What ``unit-fast bench`` times: the model as it is and with bounds, by each way there is to run it.

Each is built in a process of its own, which loads the model anew; see :mod:`unit_fast.timing`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unit_fast.bounds import Bounds
from unit_fast.capture import capture
from unit_fast.cli.example import example_input
from unit_fast.cli.models import AnyModel, load_model, runnable
from unit_fast.errors import UnitFastError
from unit_fast.runtime import sanitize
from unit_fast.runtime.calls import Call
from unit_fast.timing import Call as Timed

UNCLAMPED = ("eager", "compile")
"""Ways to run the model without bounds, next to which the sanitised ones stand."""
# A backend that is off by more than this, of the largest output, does not compute the model.
AGREEMENT = {torch.float64: 1e-6, torch.float32: 1e-3}
REDUCED_PRECISION = 0.1


def load_same_model(spec: str, weights: Path | None, model_args: str, device: torch.device) -> AnyModel:
    """``load_model``, with the same weights in every process where the model draws its own."""
    torch.manual_seed(0)
    return load_model(spec, weights, model_args, device)


@dataclass(frozen=True)
class Contender:
    """One way to run the model.

    Attributes:
        clamped: with bounds.
        backend: of :func:`unit_fast.sanitize`; without bounds one of ``UNCLAMPED``.
        model, weights, model_args: as on the command line.
        bounds: the bounds file.
        inputs: ``data``, ``input_shape``, ``size``, ``mean`` and ``std`` as on the command line.
        batches: samples a call, a case each.
        device: where it runs.
        dtype: what the sanitised model computes in; None is its own.
        threads: torch's; None is its own choice.
    """

    clamped: bool
    backend: str
    model: str
    weights: Path | None
    model_args: str
    bounds: Path
    inputs: tuple[Any, ...]
    batches: tuple[int, ...]
    device: str
    dtype: str | None
    threads: int | None

    @property
    def name(self) -> str:
        """As the table and the results call it."""
        return f"{self.backend}, {'sanitised' if self.clamped else 'unclamped'}"

    def __call__(self) -> Mapping[str, Timed]:
        """Load, build, compare with the model run eagerly, and hand back a call for each batch size."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        device = torch.device(self.device)
        loaded = load_same_model(self.model, self.weights, self.model_args, device)
        example = Call.from_example(example_input(loaded, *self.inputs)).to(device)
        calls = {size: example.of_size(size) for size in self.batches}
        run = self._sanitised(loaded, example) if self.clamped else self._unclamped(loaded, example)
        return {str(size): _finished(run, call, device) for size, call in calls.items()}

    def _sanitised(self, loaded: AnyModel, example: Call) -> Callable[..., Any]:
        bounds = Bounds.load(self.bounds)
        dtype = getattr(torch, self.dtype) if self.dtype else None
        given = example.kwargs if example.kwargs and not example.args else example.args
        fast = sanitize(loaded, bounds, given, backend=self.backend, dtype=dtype)  # type: ignore[arg-type]
        fast.warmup(self.batches)
        reference = sanitize(loaded, bounds, given, backend="eager")
        _require_agreement(fast, reference, example, dtype)
        return fast

    def _unclamped(self, loaded: AnyModel, example: Call) -> Callable[..., Any]:
        model = runnable(loaded)
        if self.backend == "eager":
            return _without_gradients(model)
        given = example.kwargs if example.kwargs and not example.args else example.args
        import torch._dynamo.config as dynamo
        import torch._inductor.config as inductor

        dynamo.recompile_limit = max(dynamo.recompile_limit, 1 + len(self.batches))  # beyond it all runs eagerly
        # Dynamo asks for it while it traces: as an option of torch.compile it comes too late, and no weight is frozen.
        inductor.freezing = True
        compiled = torch.compile(capture(loaded, given), dynamic=False)
        run = _without_gradients(compiled)
        _require_agreement(run, model, example, None)
        return run


def _without_gradients(run: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return run(*args, **kwargs)

    return call


def _finished(run: Callable[..., Any], call: Call, device: torch.device) -> Timed:
    def timed() -> object:
        output = run(*call.args, **call.kwargs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return output

    return timed


def _require_agreement(
    run: Callable[..., Any], reference: Callable[..., Any] | nn.Module, example: Call, dtype: torch.dtype | None
) -> None:
    with torch.no_grad():
        found, expected = (
            [leaf for leaf in pytree.tree_leaves(f(*example.args, **example.kwargs)) if isinstance(leaf, Tensor)]
            for f in (run, reference)
        )
    for have, want in zip(found, expected, strict=True):
        allowed = AGREEMENT.get(dtype or want.dtype, REDUCED_PRECISION) * want.abs().max().item()
        error = (have.double().cpu() - want.double().cpu()).abs().max().item()
        if not error <= allowed:
            raise UnitFastError(f"its output is off by {error:.3g}, expected at most {allowed:.3g}")
