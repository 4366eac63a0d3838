"""``unit-fast export``: model and bounds as an ONNX file that was verified before it appears."""

from pathlib import Path
from typing import Annotated

import typer

from unit_fast.cli import options
from unit_fast.cli.outputs import check_writable
from unit_fast.cli.terminal import Terminal


def export(
    model: options.Model,
    bounds: options.BoundsFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.", metavar="FILE")] = Path(
        "model.onnx"
    ),
    data: options.OptionalData = None,
    input_shape: options.InputShape = None,
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
    from unit_fast.cli.example import example_input
    from unit_fast.cli.models import check_runs, load_model
    from unit_fast.export import export_onnx

    with terminal.warnings_as_notes():
        learned = Bounds.load(bounds)
        loaded = load_model(model, weights, model_args)
        example = example_input(loaded, data, input_shape, size, mean, std)
        check_runs(loaded, example)
        terminal.note("exporting and verifying" if verify else "exporting")
        report = export_onnx(
            loaded, learned, output, example_input=example, form=form, precision=precision, opset=opset, verify=verify
        )
        terminal.show(report)
        terminal.result(report.to_dict())
