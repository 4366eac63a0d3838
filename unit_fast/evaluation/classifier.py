"""A model seen only as something that can be called: where it runs, what it predicts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from unit_fast.errors import DataError
from unit_fast.evaluation.batches import as_tensor
from unit_fast.evaluation.detection import checked_measures


class Classifier:
    """Calls a model and turns its output into checked class predictions.

    Args:
        model: an ``nn.Module``, any function from a batch to logits, or an ONNX Runtime session (anything with
            ``get_inputs`` and ``run``), whose first output is taken.
        logits: takes the model's output, returns the logits (N, classes). None: the output itself, or its ``.logits``.
        preprocess: applied to the batch before the model (normalisation).
        device: where batches are moved. None: to the model's parameters; a function gets them where they are.
        name: for messages.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        logits: Callable[[Any], Any] | None = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str | None = None,
        name: str = "model",
    ) -> None:
        self.model = _session_call(model) if hasattr(model, "get_inputs") and hasattr(model, "run") else model
        if not callable(self.model):
            raise DataError(f"{name}: expected something that can be called with a batch, found {type(model).__name__}")
        self.logits = logits
        self.preprocess = preprocess
        self.device = torch.device(device) if device is not None else module_device(model)
        self.name = name
        self._observe: Callable[..., Any] | None = None

    def observe(self) -> None:
        """From now on, let the model measure each sample too, where it can: by its ``inspect`` or ``monitor``."""
        for method in ("inspect", "monitor"):
            found = getattr(self.model, method, None)
            if callable(found):
                self._observe = found
                return

    def predict(self, inputs: Tensor, what: str) -> tuple[Tensor, int, dict[str, Tensor]]:
        """Predict classes.

        Args:
            inputs: (N, …), already on the device.
            what: the batch in words, for messages.

        Returns:
            Predictions (N,), int64, on the CPU, the number of classes, and after :meth:`observe` what the model
            measured, (N,) each by name.

        Raises:
            DataError: the output is no (N, classes) tensor, or has NaN.
        """
        ready = inputs if self.preprocess is None else self.preprocess(inputs)
        try:
            output, measured = (self.model(ready), {}) if self._observe is None else self._observe(ready)
        except RuntimeError as error:
            # Shape errors come out of the depths of torch; the shape that went in is what the user can act on.
            error.add_note(f"{self.name}, {what}: called with a batch of shape {tuple(ready.shape)}, {ready.dtype}")
            raise
        scores = self._scores(output)
        if scores.ndim != 2 or len(scores) != len(inputs) or scores.shape[1] < 2:
            raise DataError(
                f"{self.name}, {what}: expected logits ({len(inputs)}, classes), found {tuple(scores.shape)}; "
                "pick them from the output with logits="
            )
        if bool(torch.isnan(scores).any()):
            raise DataError(f"{self.name}, {what}: the output has NaN; is the data finite, and the dtype wide enough?")
        measures = checked_measures(measured, len(inputs), f"{self.name}, {what}")
        return scores.argmax(dim=1).to("cpu", torch.int64), scores.shape[1], measures

    def _scores(self, output: Any) -> Tensor:
        if self.logits is not None:
            return as_tensor(self.logits(output), f"{self.name}: logits(output)")
        if isinstance(output, tuple | list) and len(output) == 1:
            output = output[0]
        if not isinstance(output, Tensor) and isinstance(getattr(output, "logits", None), Tensor):
            return as_tensor(output.logits, self.name)
        if isinstance(output, Tensor) or hasattr(output, "__array__"):
            return as_tensor(output, self.name)
        raise DataError(
            f"{self.name}: expected logits (N, classes), found {type(output).__name__}; "
            "pick them from the output with logits=, for example logits=lambda out: out[0]"
        )


def module_device(model: object) -> torch.device | None:
    """Where a module's parameters (or buffers) are; None for functions and modules without any."""
    if not isinstance(model, nn.Module):
        return None
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return None if tensor is None else tensor.device


@contextmanager
def inference(models: Sequence[object]) -> Iterator[None]:
    """Inference mode, every module in eval mode; afterwards each submodule's mode is what it was.

    The flag is set on the modules themselves: ``eval()`` raises on exported graphs, and may be overridden to do more.
    """
    modules = [module for model in models if isinstance(model, nn.Module) for module in model.modules()]
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _session_call(session: Any) -> Callable[[Tensor], Any]:
    first = session.get_inputs()[0]
    half = "float16" in str(getattr(first, "type", ""))

    def call(batch: Tensor) -> Any:
        array = (batch.half() if half else batch).numpy(force=True)
        return session.run(None, {first.name: array})[0]

    return call
