"""``unit-fast export``: model and bounds as an ONNX file that was verified before it appears."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unit_fast.cli import options
from unit_fast.cli.outputs import check_writable
from unit_fast.cli.terminal import Terminal
from unit_fast.errors import DataError

if TYPE_CHECKING:
    from unit_fast.capture import Example


def export(
    model: options.Model,
    bounds: options.BoundsFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.", metavar="FILE")] = Path(
        "model.onnx"
    ),
    data: options.OptionalData = None,
    input_shape: Annotated[
        str | None,
        typer.Option(help="Without --data: the shape of one input, such as 3x32x32.", metavar="CxHxW"),
    ] = None,
    form: Annotated[str, typer.Option(help="How clamps are written: auto, clip (bounds per tensor) or min.")] = "auto",
    precision: Annotated[
        str, typer.Option("--dtype", "--precision", help="Of weights and activations: fp32.")
    ] = "fp32",
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = 20,
    verify: Annotated[
        bool,
        typer.Option("--verify/--no-verify", help="Compare the file in ONNX Runtime with torch before it appears."),
    ] = True,
    weights: options.Weights = None,
    model_args: options.ModelArgs = "{}",
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write the sanitised model as an ONNX file, verified in ONNX Runtime."""
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    check_writable(output)

    from unit_fast.bounds import Bounds
    from unit_fast.cli.models import check_runs, load_model
    from unit_fast.export import export_onnx

    with terminal.warnings_as_notes():
        learned = Bounds.load(bounds)
        loaded = load_model(model, weights, model_args)
        example = _example_input(loaded, data, input_shape, size, mean, std)
        check_runs(loaded, example)
        terminal.note("exporting and verifying" if verify else "exporting")
        report = export_onnx(
            loaded, learned, output, example_input=example, form=form, precision=precision, opset=opset, verify=verify
        )
        terminal.show(report)
        terminal.result(report.to_dict())


def _example_input(
    model: object, data: Path | None, input_shape: str | None, size: str | None, mean: str | None, std: str | None
) -> "Example":
    import torch

    from unit_fast.cli.data import Batches, open_samples, parse_normalisation

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
