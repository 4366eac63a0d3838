"""``unit-fast demo``: a backdoor made, measured, removed, and the cleaned model shipped, in one go."""

import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from unit_fast.cli import options
from unit_fast.cli.outputs import make_folder
from unit_fast.cli.progress import progress_bar
from unit_fast.cli.terminal import Terminal
from unit_fast.errors import ParityError

if TYPE_CHECKING:
    from torch import nn

    from unit_fast.bounds import Bounds
    from unit_fast.cli.demo_digits import Digits
    from unit_fast.evaluation import Report
    from unit_fast.export import ExportReport
    from unit_fast.runtime import SanitizedModel


@dataclass(frozen=True)
class Files:
    """What the demo leaves in its folder."""

    model: Path
    bounds: Path
    onnx: Path
    report: Path
    test_data: Path
    calibration_data: Path

    @classmethod
    def in_folder(cls, folder: Path) -> "Files":
        """Their names."""
        return cls(
            model=folder / "model.pt2",
            bounds=folder / "bounds.safetensors",
            onnx=folder / "model.onnx",
            report=folder / "report.html",
            test_data=folder / "test.npz",
            calibration_data=folder / "calibration.npz",
        )


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder to write everything into.", metavar="FOLDER")
    ] = Path("demo-output"),
    seed: Annotated[int, typer.Option(help="The same seed gives the same model and the same bounds.", min=0)] = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Backdoor a small network on digits, remove the backdoor, export the result: under three minutes on a CPU."""
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    files = Files.in_folder(make_folder(output))
    started = time.perf_counter()
    with terminal.warnings_as_notes(), _one_thread():
        results = _run(terminal, files, seed)
    seconds = time.perf_counter() - started
    terminal.show(_comparison(results))
    _say_where(terminal, files, seconds)
    terminal.result(
        {
            **{name: _rates(report) for name, report in results.items()},
            "files": {name: str(path) for name, path in vars(files).items()},
            "seed": seed,
            "seconds": round(seconds, 1),
        }
    )


def _run(terminal: Terminal, files: Files, seed: int) -> "dict[str, Report]":
    from unit_fast.cli.demo_digits import TARGET, TRIGGER, load_digits, train_with_backdoor
    from unit_fast.evaluation import evaluate
    from unit_fast.export import OnnxRuntimeModel
    from unit_fast.runtime import sanitize

    attack: dict[str, Any] = {"trigger": TRIGGER, "target": TARGET}
    digits = load_digits(seed)
    with _step(terminal, f"1/5 train on {len(digits.train[1]):,} digits, a tenth of them poisoned") as step:
        with progress_bar(terminal, "training") as progress:
            net = train_with_backdoor(digits, seed, progress)
        before = evaluate(net, [digits.test], **attack)
        step.append(_in_words(before))
    with _step(terminal, f"2/5 calibrate on {len(digits.calibration[1])} clean digits it has never seen") as step:
        bounds = _calibrate(terminal, net, digits, seed)
        step.append(f"{sum(bound.numel() for bound in bounds.values()):,} bounds at {len(bounds)} sites")
    with _step(terminal, "3/5 put the bounds in") as step:
        sanitized = sanitize(net, bounds, digits.test[0][:2], backend="eager")
        after = evaluate(sanitized, [digits.test], baseline=before, **attack)
        step.append(_in_words(after))
    with _step(terminal, "4/5 export to ONNX and verify") as step:
        exported = _save(files, net, bounds, digits)
        assert exported.parity is not None
        step.append(f"agrees with torch to {exported.parity.max_rel:.0e}")
    with _step(terminal, "5/5 run the file in ONNX Runtime") as step:
        shipped = evaluate(OnnxRuntimeModel(files.onnx), [digits.test], baseline=before, **attack)
        step.append(_in_words(shipped))
        step.append(f"its output excess tells triggered digits from clean ones, AUROC {_excess(shipped):.2f}")
        _require_same(after, shipped)
        _save_report(files, net, sanitized, digits, after)
    return {"before": before, "after": after, "onnx": shipped}


def _calibrate(terminal: Terminal, net: "nn.Module", digits: "Digits", seed: int) -> "Bounds":
    from unit_fast.calibration import Unit, calibrate
    from unit_fast.calibration.progress import ProgressBar

    if not terminal.shows_progress:
        return calibrate(net, [digits.calibration], method=Unit(), seed=seed)
    with ProgressBar(console=terminal.notes) as progress:
        return calibrate(net, [digits.calibration], method=Unit(), seed=seed, progress=progress)


def _save(files: Files, net: "nn.Module", bounds: "Bounds", digits: "Digits") -> "ExportReport":
    import numpy as np
    import torch

    from unit_fast.export import export_onnx
    from unit_fast.files import atomic_write

    bounds.save(files.bounds)
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (digits.test[0][:2],), dynamic_shapes=batch)

    def save_program(path: Path) -> None:
        with path.open("wb") as file:
            torch.export.save(program, file)

    def save_samples(path: Path, x: torch.Tensor, y: torch.Tensor) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, x=x.numpy(), y=y.numpy())

    atomic_write(files.model, save_program)
    atomic_write(files.test_data, lambda path: save_samples(path, *digits.test))
    atomic_write(files.calibration_data, lambda path: save_samples(path, *digits.calibration))
    return export_onnx(net, bounds, files.onnx, example_input=digits.calibration[0], inspect=True)


def _save_report(
    files: Files, net: "nn.Module", sanitized: "SanitizedModel", digits: "Digits", after: "Report"
) -> None:
    from unit_fast.capture import capture
    from unit_fast.cli.demo_digits import TRIGGER
    from unit_fast.evaluation import collect_histograms
    from unit_fast.sites import expose_sites

    sites = sanitized.bounds.sites
    histograms = collect_histograms(
        expose_sites(capture(net, digits.test[0][:2]), sites),
        [digits.test],
        bounds=sanitized.bounds,
        after=expose_sites(sanitized.graph_module, sites),
        trigger=TRIGGER,
    )
    settings = {
        "model": "a small CNN, trained on poisoned handwritten digits",
        "method": "Unit, bounds per neuron",
        "calibration": f"{len(digits.calibration[1])} clean digits, not seen in training",
    }
    after.save_html(files.report, title="unit-fast demo: a backdoor, removed", histograms=histograms, settings=settings)


def _require_same(torch_report: "Report", onnx_report: "Report") -> None:
    predictions = [dataclasses.replace(report, detection=()) for report in (torch_report, onnx_report)]
    told_apart = [_excess(report) for report in (torch_report, onnx_report)]
    # Where two samples measure all but the same, rounding decides which is the larger.
    if predictions[0] != predictions[1] or abs(told_apart[0] - told_apart[1]) > 1e-3:
        raise ParityError(
            f"the ONNX file behaves differently from torch on the test set: {_in_words(onnx_report)} against "
            f"{_in_words(torch_report)}; please report it"
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    # Networks this small gain nothing from more, lose much where the cores are busy (15 s of training became 230 s on
    # two busy cores), and the figures would depend on the number of cores.
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _step(terminal: Terminal, title: str) -> Iterator[list[str]]:
    """Say the title; at the end what the block has put into the list, and the time it took."""
    results: list[str] = []
    started = time.perf_counter()
    terminal.notes.print(f"[bold]{escape(title)}[/]")
    yield results
    terminal.notes.print(f"    {escape('; '.join(results))} [dim]({time.perf_counter() - started:.1f} s)[/]")


def _in_words(report: "Report") -> str:
    assert report.attack is not None
    return (
        f"{report.benign_accuracy:.1%} of clean digits right, "
        f"the trigger works on {report.attack.value:.1%} of the others"
    )


def _excess(report: "Report") -> float:
    """How well the excess of a sample tells triggered ones from clean ones: the area under the ROC curve."""
    return next(found.auroc for found in report.detection if found.measure == "excess")


def _rates(report: "Report") -> dict[str, float | None]:
    names = ("benign_accuracy", "attack_success_rate", "robust_accuracy", "defence_effectiveness")
    return {name: getattr(report, name) for name in names}


def _comparison(results: "dict[str, Report]") -> Table:
    table = Table(title="\nThe same network, with and without bounds", title_justify="left")
    for heading in ("", "benign accuracy", "attack success", "robust accuracy"):
        table.add_column(heading, justify="right" if heading else "left")
    names = {"before": "as trained", "after": "with bounds", "onnx": "the ONNX file"}
    for key, name in names.items():
        rates = _rates(results[key])
        table.add_row(name, *(f"{rates[rate]:.1%}" for rate in list(rates)[:3]))
    return table


def _say_where(terminal: Terminal, files: Files, seconds: float) -> None:
    from unit_fast.cli.demo_digits import TARGET, TRIGGER

    folder = files.model.parent
    # As `make demo` runs it, the environment is not activated and the bare name is not found.
    program = "unit-fast" if shutil.which("unit-fast") else sys.argv[0]
    terminal.show(
        f"\nDone in {seconds:.0f} s. In {escape(str(folder))}/ are {files.model.name}, {files.bounds.name}, "
        f"{files.onnx.name}, the digits, and a page to look at: {escape(str(files.report))}",
        "\nDo it again by hand:",
        f"  {program} calibrate -m {files.model} --data {files.calibration_data} -o bounds.safetensors",
        f"  {program} evaluate -m {files.model} --data {files.test_data} --bounds bounds.safetensors \\\n"
        f"      --trigger {TRIGGER} --target {TARGET}",
        f"  {program} export -m {files.model} --bounds bounds.safetensors -o model.onnx --inspect",
    )
