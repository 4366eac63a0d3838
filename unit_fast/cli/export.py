"""``unit-fast export``: model and bounds as an ONNX file that was verified before it appears."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unit_fast.cli import options
from unit_fast.cli.outputs import check_distinct, check_writable
from unit_fast.cli.terminal import Terminal
from unit_fast.cli.triton_server import place, refuse_server_options, server_options
from unit_fast.errors import BackendUnavailableError, DataError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unit_fast.bounds import Bounds
    from unit_fast.capture import Example
    from unit_fast.cli.data import Batches

GRAPH_ENDINGS = (".svg", ".html")  # of unit_fast.export.picture, which takes a second to import
_BATCH = 64
_SERVER = "With --layout triton"


class Layout(StrEnum):
    """What is written."""

    FILE = "file"
    TRITON = "triton"


def export(
    model: options.Model,
    bounds: options.BoundsFile,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The ONNX file to write; with --layout triton the model's folder, REPOSITORY/NAME.",
            metavar="PATH",
        ),
    ] = Path("model.onnx"),
    data: options.OptionalData = None,
    input_shape: options.InputShape = None,
    form: Annotated[
        str, typer.Option(help="How clamps are written: clip (bounds per tensor), min, mul_clip, folded, or auto.")
    ] = "auto",
    target: Annotated[
        str,
        typer.Option(
            help="The runtime that auto chooses for: onnxruntime, openvino, tensorrt, tflite, ncnn or generic."
        ),
    ] = "onnxruntime",
    precision: Annotated[
        str,
        typer.Option(
            "--dtype",
            "--precision",
            help="Of weights and activations: fp32, fp16, or int8, which is fitted to all of --data.",
        ),
    ] = "fp32",
    weight_bits: Annotated[
        int, typer.Option(help="For int8: 8, or 7 for processors without VNNI, whose integer kernels overflow.")
    ] = 8,
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = 20,
    verify: Annotated[
        bool,
        typer.Option("--verify/--no-verify", help="Compare the file in ONNX Runtime with torch before it appears."),
    ] = True,
    fold_normalization: Annotated[
        bool,
        typer.Option(
            "--fold-normalization",
            help="The file takes pixels in [0, 1] and applies --mean and --std itself.",
        ),
    ] = False,
    inspect: Annotated[
        bool,
        typer.Option("--inspect", help="One more output, excess: how far each sample was driven beyond its bounds."),
    ] = False,
    speed: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Time the file beside the same model without clamps.")
    ] = True,
    graph: Annotated[
        Path | None,
        typer.Option(help="Draw the graph with its clamps marked here (.svg, .html).", metavar="FILE"),
    ] = None,
    optimized: Annotated[
        Path | None,
        typer.Option(
            help="Also write the file as ONNX Runtime optimises it for this processor: faster, and for it alone. fp32.",
            metavar="FILE",
        ),
    ] = None,
    layout: Annotated[
        Layout, typer.Option(help="One ONNX file, or a model repository of Triton Inference Server.")
    ] = Layout.FILE,
    new_version: Annotated[
        bool,
        typer.Option(
            "--new-version",
            help="Add a version to a folder that is there, as its config.pbtxt has it.",
            rich_help_panel=_SERVER,
        ),
    ] = False,
    max_batch_size: Annotated[
        int | None, typer.Option(help="Largest batch the server makes (32); 0: none.", rich_help_panel=_SERVER)
    ] = None,
    preferred_batch_sizes: Annotated[
        str | None, typer.Option(help="Batches it waits for, such as 8,32.", metavar="NUMBERS", rich_help_panel=_SERVER)
    ] = None,
    queue_delay: Annotated[
        int | None, typer.Option(help="Microseconds a request waits for others (100).", rich_help_panel=_SERVER)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where the server runs it: auto, cpu or cuda.", rich_help_panel=_SERVER)
    ] = None,
    instances: Annotated[
        int | None, typer.Option(help="Instances, on a GPU of each (1).", rich_help_panel=_SERVER)
    ] = None,
    tensorrt: Annotated[
        bool, typer.Option("--tensorrt", help="Have the server run it through TensorRT.", rich_help_panel=_SERVER)
    ] = False,
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
    server = {
        "max_batch_size": max_batch_size,
        "preferred_batch_sizes": preferred_batch_sizes,
        "queue_delay": queue_delay,
        "device": device,
        "instances": instances,
        "tensorrt": tensorrt or None,
    }
    inputs: dict[str, Path | str | None] = {"--model": model, "--bounds": bounds, "--weights": weights, "--data": data}
    if layout is Layout.FILE:
        refuse_server_options({**server, "new_version": new_version})
        check_writable(output, inputs=inputs)
    if graph is not None:
        _check_graph(graph, output, inputs)
    if optimized is not None:
        if precision != "fp32":
            raise DataError(f"--optimized is for --dtype fp32, not {precision}; leave one of them out")
        check_writable(optimized, "--optimized", inputs)
        check_distinct({"--output": output, "--graph": graph, "--optimized": optimized})

    from unit_fast.bounds import Bounds
    from unit_fast.cli.example import example_input
    from unit_fast.cli.models import check_runs, load_model
    from unit_fast.export import export_onnx, optimize_onnx
    from unit_fast.export.exporter import check_options

    wanted: dict[str, Any] = {
        "form": form,
        "target": target,
        "precision": precision,
        "opset": opset,
        "verify": verify,
        "normalization": _normalization(mean, std) if fold_normalization else None,
        "weight_bits": weight_bits,
        "inspect": inspect,
    }
    checked = check_options(**wanted)
    calibration_data = _calibration_data(precision, data, size, mean, std)
    with terminal.warnings_as_notes(), _destination(output, layout) as file:
        config = server_options(server, output, new_version) if layout is Layout.TRITON else None
        learned = Bounds.load(bounds)
        checked.check_bounds(learned)
        loaded = load_model(model, weights, model_args)
        example = example_input(loaded, data, input_shape, size, mean, std)
        check_runs(loaded, example)
        terminal.note("exporting and verifying" if verify else "exporting")
        report = export_onnx(loaded, learned, file, example_input=example, calibration_data=calibration_data, **wanted)
        if layout is Layout.TRITON:
            report = place(report, output, config, new_version)
        terminal.show(report)
        result = report.to_dict()
        if graph is not None:
            from unit_fast.export.picture import draw_graph

            draw_graph(report.path, graph, report.sites)
            terminal.note(f"drew {graph}")
            result["graph"] = graph
        files = {f"{report.precision} file": report.path}
        if optimized is not None:
            made = optimize_onnx(report.path, optimized, verify=verify)
            terminal.note(made.summary())
            result["optimized"] = asdict(made) | {"path": str(made.path)}
            files["optimised file"] = made.path
        if speed:
            measured = _show_speed(terminal, files, report.opset, loaded, learned, example)
            result["speed"] = measured[0]
            if optimized is not None:
                result["optimized"]["speed"] = measured[1]
        terminal.result(result)


def _normalization(mean: str | None, std: str | None) -> tuple[Sequence[float], Sequence[float]]:
    from unit_fast.cli.data import parse_normalisation

    found = parse_normalisation(mean, std)
    if found is None:
        raise DataError("--fold-normalization writes --mean and --std into the file; give them")
    return found.mean, found.std


def _calibration_data(
    precision: str, data: Path | None, size: str | None, mean: str | None, std: str | None
) -> "Batches | None":
    from unit_fast.cli.data import Batches, open_samples, parse_normalisation

    if precision != "int8":
        return None
    if data is None:
        raise DataError("--dtype int8 is fitted to data; give --data, such as what the bounds were calibrated on")
    return Batches(open_samples(data, size), _BATCH, parse_normalisation(mean, std))


def _check_graph(graph: Path, output: Path, inputs: Mapping[str, Path | str | None]) -> None:
    check_writable(graph, "--graph", inputs)
    if graph.suffix not in GRAPH_ENDINGS:
        raise DataError(f"--graph {graph}: a picture of the graph ends in {' or '.join(GRAPH_ENDINGS)}")
    check_distinct({"--output": output, "--graph": graph})


@contextmanager
def _destination(output: Path, layout: Layout) -> Iterator[Path]:
    """Where the file is written: at once where it belongs, or where it is taken into a repository from."""
    if layout is Layout.FILE:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="unit-fast-") as folder:
        yield Path(folder) / "model.onnx"


def _show_speed(
    terminal: Terminal,
    files: Mapping[str, Path],
    opset: int,
    model: "nn.Module | torch.export.ExportedProgram",
    bounds: "Bounds",
    example: "Example",
) -> list[list[dict[str, Any]] | None]:
    """Time each file beside the same model exported in float32 with bounds of infinity, which leave no clamps."""
    import torch

    from unit_fast.export import export_onnx
    from unit_fast.export.speed import compare_speed, speed_table

    terminal.note("timing beside the same model without clamps; --no-speed leaves that out")
    unlimited = replace(bounds, tensors={name: torch.full_like(bound, torch.inf) for name, bound in bounds.items()})
    measured: list[list[dict[str, Any]] | None] = []
    with tempfile.TemporaryDirectory(prefix="unit-fast-") as folder:
        plain = Path(folder) / "plain.onnx"
        for name, file in files.items():
            try:
                if not plain.exists():
                    export_onnx(model, unlimited, plain, example_input=example, opset=opset, verify=False)
                speeds = compare_speed(file, plain)
            except (BackendUnavailableError, DataError) as error:
                terminal.warn(f"the speed of the {name} was not measured: {error}")
                measured.append(None)
                continue
            terminal.show(speed_table(speeds, f"{name} against float32 without clamps, ONNX Runtime on the CPU"))
            measured.append([speed.to_dict() for speed in speeds])
    return measured
