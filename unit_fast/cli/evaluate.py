"""``unit-fast evaluate``: how right a model is, and what a trigger makes of it, without and with bounds."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from unit_fast.cli import options
from unit_fast.cli.outputs import check_distinct, check_writable
from unit_fast.cli.progress import progress_bar
from unit_fast.cli.terminal import Terminal
from unit_fast.errors import DataError


def evaluate(
    model: options.Model,
    data: options.Data,
    bounds: options.OptionalBoundsFile = None,
    onnx: Annotated[
        Path | None, typer.Option(help="Measure this ONNX file in ONNX Runtime, beside the model.", metavar="FILE")
    ] = None,
    trigger: Annotated[
        str | None,
        typer.Option(
            help="The attack: patch:size=4,row=27,col=27,value=1 | patch:FILE | blend:FILE,ratio=0.2 | add:FILE | "
            "sinusoid:delta=0.08,frequency=6 | warp:seed=0 | warp:noise=FILE | custom:package.module:function.",
            metavar="SPEC",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The class it aims at: a number, or all-to-all.", metavar="CLASS")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the report as JSON here.", metavar="FILE")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the report as one HTML page, with plots, here.", metavar="FILE")
    ] = None,
    weights: options.Weights = None,
    model_args: options.ModelArgs = "{}",
    device: options.Device = "auto",
    dtype: options.DTypeOption = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    batch_size: options.BatchSize = 128,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure accuracy and, with a trigger, how often the attack succeeds: of the model, and with bounds beside it."""
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    if bounds is not None and onnx is not None:
        raise DataError(
            "--bounds and --onnx are both given; an ONNX file has its bounds inside, so measure one at a time"
        )
    inputs = {"--model": model, "--bounds": bounds, "--onnx": onnx, "--weights": weights, "--data": data}
    outputs = {"--output": output, "--html": html}
    for option, path in outputs.items():
        if path is not None:
            check_writable(path, option, {**inputs, "--trigger": trigger})
    check_distinct(outputs)

    import torch

    from unit_fast.cli.data import Batches, open_samples, parse_normalisation
    from unit_fast.cli.devices import parse_device
    from unit_fast.cli.models import check_runs, load_model, make_here_importable
    from unit_fast.evaluation import evaluate as measure
    from unit_fast.evaluation.triggers import parse

    with terminal.warnings_as_notes():
        if (trigger is None) != (target is None):
            one, other = ("--trigger", "--target") if target is None else ("--target", "--trigger")
            raise DataError(f"{one} is given without {other}; an attack has both, clean accuracy needs neither")
        make_here_importable()
        attack = parse(trigger) if trigger is not None else None
        aim = _parse_target(target)
        place = parse_device(device)
        normalise = parse_normalisation(mean, std)
        samples = open_samples(data, size)
        if samples.labels is None:
            raise DataError(f"--data {data} has no labels; put the images into one folder a class, or y into the .npz")
        loaded = load_model(model, weights, model_args, place)
        batches = Batches(samples, batch_size)
        example = Batches(samples, batch_size, normalise).example().to(place)
        check_runs(loaded, example)
        subject = _Subject(loaded, example, bounds, onnx, getattr(torch, dtype) if dtype else None)
        with progress_bar(terminal, "evaluating") as progress:
            report = measure(
                subject.measured,
                batches,
                trigger=attack,
                target=aim,
                baseline=subject.baseline,
                preprocess=normalise,
                device=place,
                progress=progress,
            )
        if output is not None:
            report.save_json(output)
        if html is not None:
            terminal.note("drawing the activations")
            histograms = subject.histograms(batches, attack, normalise)
            settings = {"model": model, "weights": weights, "bounds": bounds, "ONNX file": onnx, "data": data}
            given = {name: value for name, value in settings.items() if value is not None}
            report.save_html(html, histograms=histograms, settings=given)
        terminal.show(report)
        for written in (output, html):
            if written is not None:
                terminal.note(f"wrote {written}")
        terminal.result(report.to_dict())


class _Subject:
    """What is measured, what it is compared with, and where its activations are."""

    def __init__(self, model: Any, example: Any, bounds_file: Path | None, onnx_file: Path | None, dtype: Any) -> None:
        from unit_fast.bounds import Bounds
        from unit_fast.cli.models import runnable
        from unit_fast.export import OnnxRuntimeModel
        from unit_fast.runtime import sanitize

        self._model = model
        self._example = example
        self._bounds = Bounds.load(bounds_file) if bounds_file is not None else None
        self.measured: Callable[..., Any] = runnable(model)
        self.baseline: Callable[..., Any] | None = None
        if self._bounds is not None:
            self.baseline = self.measured
            self.measured = sanitize(model, self._bounds, example, backend="eager", dtype=dtype)
        elif dtype is not None:
            raise DataError("--dtype is for a model with --bounds; without them it runs in its own")
        if onnx_file is not None:
            self.baseline = self.measured
            self.measured = OnnxRuntimeModel(onnx_file, device=example.device.type)

    def histograms(self, batches: Any, attack: Any, normalise: Any) -> Any:
        """Activations of up to 512 samples; with bounds also after the clamps."""
        from unit_fast.capture import capture
        from unit_fast.evaluation import collect_histograms
        from unit_fast.sites import expose_sites, find_sites, insert_bounds

        captured = capture(self._model, self._example)
        bounds = self._bounds
        sites = find_sites(captured, include=None if bounds is None else list(bounds))
        on_device = {name: bound.to(self._example.device) for name, bound in (bounds or {}).items()}
        return collect_histograms(
            expose_sites(captured, sites),
            batches,
            bounds=on_device or None,
            after=expose_sites(insert_bounds(captured, on_device), sites) if bounds else None,
            trigger=attack,
            preprocess=normalise,
            device=self._example.device,
            max_batches=max(1, 512 // batches.batch_size),
        )


def _parse_target(text: str | None) -> int | str | None:
    if text is None or text == "all-to-all":
        return text
    if not text.isdecimal():
        raise DataError(f"--target {text}: expected a class number, 0 or more, or all-to-all")
    return int(text)
