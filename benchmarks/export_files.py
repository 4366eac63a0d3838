"""The files whose cost and accuracy are measured: networks written in every form and precision, and int8 by others."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.models import make, make_bounds
from unit_fast.bounds import Bounds, Granularity
from unit_fast.export import ExportReport, OnnxRuntimeModel, export_onnx, optimize_onnx
from unit_fast.runtime import sanitize

SAMPLES, LARGE_SAMPLES = 128, 32  # that bounds and int8 are fitted to; of images above 64×64 fewer, for memory

Row = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """A way to write a model.

    Attributes:
        form: as ``export_onnx`` takes it; "no clamps" for the model as it was.
        granularity: of the bounds; None without clamps.
        precision: as ``export_onnx`` takes it.
        maker: "unit_fast", or who else wrote the file.
        optimized: for the processor at hand, by ``optimize_onnx``.
        inspect: it measures its samples too.
    """

    form: str
    granularity: Granularity | None
    precision: str = "fp32"
    maker: str = "unit_fast"
    optimized: bool = False
    inspect: bool = False

    def __str__(self) -> str:
        marks = [name for name, marked in (("optimised", self.optimized), ("inspect", self.inspect)) if marked]
        return " ".join(filter(None, (self.precision, self.form, self.granularity, self.maker, *marks)))


PLAIN = Way("no clamps", None)
PLAIN_INT8 = Way("no clamps", None, "int8", "onnxruntime.quantization")


class Workshop:
    """Makes the files that are measured, and remembers the networks.

    Args:
        folder: where the files go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bounds = cache(self._bounds)

    @staticmethod
    @cache
    def network(name: str) -> tuple[nn.Module, Tensor]:
        """The network and inputs for it."""
        return make(name)

    def _bounds(self, name: str, granularity: Granularity) -> Bounds:
        model, example = self.network(name)
        return make_bounds(model, torch.cat(samples(example)), granularity)

    def export(self, name: str, way: Way, verify: bool = True) -> ExportReport:
        """Write the network that way.

        Raises:
            UnitFastError: it cannot be written that way, or is not right.
        """
        model, example = self.network(name)
        bounds = self.bounds(name, way.granularity or "tensor")
        if way.granularity is None:
            unlimited = {site: torch.full_like(bound, torch.inf) for site, bound in bounds.items()}
            bounds = replace(bounds, tensors=unlimited)
        options: dict[str, Any] = {}
        if way.inspect:
            bounds = sanitize(model, bounds, example, backend="eager").fit_threshold([example]).bounds
            options["inspect"] = True
        if way.precision == "int8":
            options["calibration_data"] = samples(example)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which bounds no input reached is in the report
            return export_onnx(
                model,
                bounds,
                self.folder / f"{name} {way}.onnx",
                example_input=example,
                form="auto" if way.granularity is None else way.form,
                precision=way.precision,
                verify=verify,
                **options,
            )

    def file(self, name: str, way: Way) -> Path:
        """The file of the network written that way."""
        if way.optimized:
            return optimize_onnx(
                self.export(name, replace(way, optimized=False)).path, self.folder / f"{name} {way}.onnx"
            ).path
        if way.maker != "onnxruntime.quantization":
            return self.export(name, way).path
        plain, path = self.export(name, PLAIN).path, self.folder / f"{name} {way}.onnx"
        quantise_plainly(plain, path, samples(self.network(name)[1]))
        return path


def samples(example: Tensor) -> list[Tensor]:
    """Inputs to fit to, in batches: the example's, then others drawn like it."""
    generator = torch.Generator().manual_seed(1)
    count = SAMPLES if example.shape[-1] <= 64 else LARGE_SAMPLES
    drawn = torch.randn(count - len(example), *example.shape[1:], generator=generator)
    return list(torch.cat([example, drawn * example.std() + example.mean()]).split(16))


def quantise_plainly(plain: Path, path: Path, batches: Sequence[Tensor]) -> None:
    """int8 by onnxruntime.quantization: QDQ, uint8 activations, int8 weights per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    name = OnnxRuntimeModel(plain).input_names[0]

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # has no types
        def __init__(self) -> None:
            self.feeds = iter([{name: batch.numpy()} for batch in batches])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    quantize_static(
        plain,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
