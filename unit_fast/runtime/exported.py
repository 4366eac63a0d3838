"""A sanitised graph as an ONNX file, and that file in a runtime on the CPU, called as the graph's module."""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from unit_fast.capture import ONE_AT_A_TIME
from unit_fast.errors import BackendUnavailableError, DataError, ParityError, UnitFastError
from unit_fast.processor import weight_bits
from unit_fast.runtime.agreement import difference, judgeable
from unit_fast.runtime.flat import FlatGraph, Key, key_of, require_devices
from unit_fast.runtime.program import Program

_logger = logging.getLogger(__name__)


class Session(Protocol):
    """A file in a runtime; several threads may call it at once."""

    def outputs(self, inputs: Sequence[np.ndarray]) -> list[Tensor]:
        """All outputs, in memory of their own, for all inputs, each in the order of the file.

        Raises:
            DataError: it does not take these inputs.
        """


@dataclass(frozen=True)
class ExportedFile:
    """A graph as an ONNX file.

    Attributes:
        path: the file.
        forms: by site how its clamp is written, and why.
        meaning: of int8, what it comes to in float between the integers; its sessions are held to that.
        external_data: whether its tensors lie in another file, as those above 2 GB do.
    """

    path: Path
    forms: tuple[tuple[str, str, str], ...]
    meaning: Session | None = None
    external_data: bool = False


@contextmanager
def exported(program: Program, target: str, calibration_data: Iterable[Any] | None = None) -> Iterator[ExportedFile]:
    """The program's graph as a file, for as long as the context lasts.

    Args:
        program: whose graph.
        target: the runtime that it is written for.
        calibration_data: clean samples; makes it int8.

    Raises:
        BackendUnavailableError: the graph cannot be exported, or there is no place for the file.
        DataError: of int8: the samples are missing or unusable.
        ParityError: of int8: it changes too many predictions.
    """
    from unit_fast.export.options import Options
    from unit_fast.export.pipeline import export_graph

    _logger.info("exporting the sanitised graph for %s", target)
    precision: Literal["fp32", "int8"] = "fp32" if calibration_data is None else "int8"
    options = Options("auto", precision, 20, verify=False, weight_bits=weight_bits(), target=target)  # it runs here
    example = program.example.kwargs or program.example.args
    try:
        with tempfile.TemporaryDirectory(prefix="unit_fast-") as folder:
            path = Path(folder) / "model.onnx"
            with ONE_AT_A_TIME:
                report = export_graph(program.module, program.bounds, path, example, options, calibration_data)
            forms = tuple((site.site, site.form, site.reason) for site in report.sites)
            yield ExportedFile(path, forms, external_data=report.external_data is not None)
    except (BackendUnavailableError, DataError, ParityError):
        raise
    except OSError as error:
        raise BackendUnavailableError(
            f"a temporary file is needed for the sanitised graph, and none can be written: {error}; point TMPDIR to a "
            "folder with room, or use another backend"
        ) from error
    except UnitFastError as error:
        raise BackendUnavailableError(f"the sanitised graph cannot be exported for {target}: {error}") from error


class ExportedGraph:
    """A graph by a session of its file, called as the graph's module; meets it at every new batch size.

    Args:
        program: whose graph.
        file: with the graph; needed no longer.
        session: of the file.
        runtime: how messages call it.
    """

    def __init__(self, program: Program, file: ExportedFile, session: Session, runtime: str) -> None:
        self._flat = FlatGraph(program.module)
        self._session = session
        self._meaning = file.meaning
        self._runtime = runtime
        example = program.example
        self._devices = [tensor.device for tensor in self._flat.tensors(example.args, example.kwargs)]
        self._known: set[Key] = set()

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the graph's module returns.

        Raises:
            DataError: the session does not take these inputs.
            ParityError: it disagrees with the reference.
        """
        inputs = self._flat.flatten(args, kwargs)
        key = key_of(inputs)
        if key in self._known:
            return self._flat.unflatten(self._run(self._session, inputs), inputs)
        require_devices(inputs, self._devices)
        with torch.no_grad():
            expected = self._flat.module(*inputs)  # inputs that do not fit fail here, in the model's own words
        if any(tensor.numel() == 0 for tensor in inputs):
            return self._flat.unflatten(expected, inputs)
        outputs = self._run(self._session, inputs)
        if not judgeable(expected):
            return self._flat.unflatten(outputs, inputs)
        if self._meaning is None:
            found = difference(outputs, expected)
        else:
            found = _noise(outputs, self._run(self._meaning, inputs))
        if found is not None:
            raise ParityError(
                f"{self._runtime} does not compute what the sanitised graph computes on inputs "
                f"{[tuple(tensor.shape) for tensor in inputs]}: {found}; "
                "use another backend, and report it with the versions that unit-fast env shows"
            )
        self._known.add(key)
        return self._flat.unflatten(outputs, inputs)

    def _run(self, session: Session, inputs: list[Tensor]) -> list[Tensor]:
        values = session.outputs([(x.detach() if x.requires_grad else x).numpy() for x in inputs])
        return [value for value, kept in zip(values, self._flat.tensor_outputs, strict=True) if kept]


def _noise(outputs: Sequence[Tensor], meant: Sequence[Tensor]) -> str | None:
    from unit_fast.export.quantization.verification import excessive_noise

    shares = [excessive_noise(*pair) for pair in zip(meant, outputs, strict=True)]
    noise = max((share for share in shares if share is not None), default=None)
    return None if noise is None else f"noise of {noise:.1%} over what the int8 file means"
