"""``unit-fast calibrate``: bounds from a little clean data."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unit_fast.cli import options
from unit_fast.cli.outputs import check_distinct, check_writable
from unit_fast.cli.terminal import Terminal
from unit_fast.errors import BackendUnavailableError, DataError

if TYPE_CHECKING:
    from unit_fast.bounds import Bounds
    from unit_fast.calibration import Method, Progress

EXIT_INTERRUPTED = 130
_DOUBTFUL_ACCURACY = 0.5


class Hold(StrEnum):
    """The choices of ``--hold``."""

    DIVERGENCE = "divergence"
    ACCURACY = "accuracy"


def calibrate(
    model: options.Model,
    data: options.Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="The bounds file to write.", metavar="FILE")] = Path(
        "bounds.safetensors"
    ),
    method: Annotated[
        str,
        typer.Option(
            help="unit (learned), paper (UNIT as published), mean-std:4 (deviations), percentile:0.99 (ReAct), "
            "maximum (Ranger).",
            metavar="METHOD",
        ),
    ] = "unit",
    granularity: Annotated[
        options.Granularity, typer.Option(help="One bound for every neuron, channel, or layer.")
    ] = options.Granularity.NEURON,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Accuracy that clean data may lose, 0.03 for three points; unit and paper only.", min=0, max=1
        ),
    ] = None,
    hold: Annotated[
        Hold | None,
        typer.Option(
            help="What keeps the tolerance: divergence from the model's own outputs (what unit holds unless told), or "
            "accuracy (what paper holds), which removes more; for labelled samples that the model was not trained on.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bounds.", min=0)] = 0,
    include: Annotated[
        list[str] | None, typer.Option(help="Only layers whose name matches, such as 'features.*'; repeatable.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="No layers whose name matches; repeatable.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a calibration to the same --output was stopped.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw every layer's clean activations and bounds here (.png, .svg).")
    ] = None,
    weights: options.Weights = None,
    model_args: options.ModelArgs = "{}",
    device: options.Device = "auto",
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    batch_size: options.BatchSize = 128,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Learn from clean samples how far each activation of the model may go; writes a bounds file."""
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    inputs = {"--model": model, "--weights": weights, "--data": data}
    check_writable(output, inputs=inputs)
    check_writable(_checkpoint_path(output), "the checkpoint of --output,", inputs)
    check_distinct({"--output": output, "the checkpoint of --output": _checkpoint_path(output), "--plot": plot})
    if plot is not None:
        _check_plot(plot, inputs)
    checkpoint = _checkpoint(output, resume, terminal)

    from unit_fast.calibration import calibrate as fit
    from unit_fast.cli.data import Batches, open_samples, parse_normalisation
    from unit_fast.cli.devices import parse_device
    from unit_fast.cli.models import check_runs, load_model

    with terminal.warnings_as_notes():
        chosen = parse_method(method, tolerance, hold)
        place = parse_device(device)
        samples = open_samples(data, size)
        batches = Batches(samples, batch_size, parse_normalisation(mean, std))
        loaded = load_model(model, weights, model_args, place)
        example = batches.example().to(place)
        check_runs(loaded, example)
        terminal.note(f"calibrating {model} on {len(samples)} samples of {data}")
        with _telling_how_to_resume(terminal, checkpoint), _bar(terminal) as progress:
            bounds = fit(
                loaded,
                batches,
                method=chosen,
                granularity=granularity.value,
                example_input=example,
                include=include,
                exclude=exclude,
                seed=seed,
                progress=progress,
                checkpoint=checkpoint,
                batch_size=batch_size,
            )
        bounds.save(output)
        if plot is not None:
            bounds.plot(plot)
        interrupted = checkpoint.exists()
        terminal.show(bounds.summary(), _accuracies(bounds))
        _doubt_labels(terminal, bounds)
        terminal.note(f"wrote {output}" + (f" and {plot}" if plot is not None else ""))
        terminal.result(
            {
                "output": output,
                "granularity": bounds.granularity,
                "sites": len(bounds.sites),
                "bounds": sum(tensor.numel() for tensor in bounds.values()),
                "sha256": bounds.sha256,
                "interrupted": interrupted,
                **bounds.metadata,
            }
        )
    if interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


def parse_method(text: str, tolerance: float | None = None, hold: Hold | None = None) -> "Method":
    """A calibration method from its name and number, such as ``percentile:0.99``.

    Raises:
        DataError: no such method, not a number, or a setting for a method that has none.
    """
    from unit_fast.calibration import Maximum, MeanStd, Percentile, Unit

    name, _, number = text.partition(":")
    if text in ("unit", "paper"):
        unit = Unit(recipe="paper" if text == "paper" else "default", hold=None if hold is None else hold.value)
        return unit if tolerance is None else replace(unit, tolerance=tolerance)
    by_number: dict[str, Callable[[float], Method]] = {"mean-std": MeanStd, "percentile": Percentile}
    if (name not in by_number or text.endswith(":")) and text != "maximum":
        raise DataError(f"--method {text}: expected unit, paper, mean-std:4, percentile:0.99 or maximum")
    for option, value in (("--tolerance", tolerance), ("--hold", hold)):
        if value is not None:
            raise DataError(f"{option} is for --method unit and paper; {name} measures and does not search")
    if text == "maximum":
        return Maximum()
    if not number:
        return MeanStd() if name == "mean-std" else Percentile()
    try:
        return by_number[name](float(number))
    except ValueError as error:
        raise DataError(f"--method {text}: expected a number after the colon") from error


def _check_plot(plot: Path, inputs: Mapping[str, Path | str | None]) -> None:
    check_writable(plot, "--plot", inputs)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendUnavailableError(
            f"--plot needs matplotlib ({error}); install it with: pip install 'unit_fast[vision]'"
        ) from error
    endings = sorted(Figure().canvas.get_supported_filetypes())
    if plot.suffix and plot.suffix[1:].lower() not in endings:  # without an ending it becomes a PNG
        raise DataError(f"--plot {plot}: a picture cannot end in {plot.suffix!r}; expected one of {', '.join(endings)}")


def _checkpoint_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.checkpoint")


def _checkpoint(output: Path, resume: bool, terminal: Terminal) -> Path:
    path = _checkpoint_path(output)
    if resume and not path.exists():
        raise DataError(f"--resume: there is no {path}, so nothing to go on with; leave --resume out")
    if not resume and path.exists():
        terminal.note(f"starting over; --resume would have gone on from {path}")
        path.unlink()
    return path


def _accuracies(bounds: "Bounds") -> str:
    accuracy, samples = bounds.metadata["accuracy"], bounds.metadata["samples"]
    return "\n".join(
        f"{part}: {accuracy[f'{part}_before']:.2%} → {accuracy[f'{part}_after']:.2%} of {samples[part]:,} samples right"
        for part in ("fit", "validation")
    )


def _doubt_labels(terminal: Terminal, bounds: "Bounds") -> None:
    right = bounds.metadata["accuracy"]["fit_before"]
    if bounds.metadata["samples"]["labels"] == "given" and right < _DOUBTFUL_ACCURACY:
        terminal.warn(
            f"without any bounds the model gets only {right:.1%} of these samples right; are the classes numbered "
            "as in its training, and --mean, --std and --size as they were there?"
        )


@contextmanager
def _telling_how_to_resume(terminal: Terminal, checkpoint: Path) -> Iterator[None]:
    # With bounds within the tolerance in hand, calibrate() returns them instead of raising.
    try:
        yield
    except KeyboardInterrupt:
        if checkpoint.exists():
            terminal.note(f"stopped before any bounds were good enough; --resume goes on from {checkpoint}")
        raise


def _bar(terminal: Terminal) -> "AbstractContextManager[Progress | None]":
    from unit_fast.calibration.progress import ProgressBar

    return ProgressBar(console=terminal.notes) if terminal.shows_progress else nullcontext()
