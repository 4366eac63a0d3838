"""``unit-fast bench``: latency and throughput on this machine, with bounds and without, by every way there is."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from unit_fast.cli import options
from unit_fast.cli.outputs import check_writable
from unit_fast.cli.progress import progress_bar
from unit_fast.cli.terminal import Terminal
from unit_fast.errors import DataError

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from unit_fast.bounds import Bounds, Granularity
    from unit_fast.capture import Example
    from unit_fast.cli.contenders import Contender
    from unit_fast.cli.models import AnyModel
    from unit_fast.timing import Failure, Timing

    Results = dict[str, dict[str, Timing] | Failure]

# Statistics of so many random inputs stand in for bounds where no file is given.
_SAMPLES = 64


def bench(
    model: options.Model,
    batch: Annotated[str, typer.Option(help="Samples a call, several with commas between.")] = "1,32",
    bounds: options.OptionalBoundsFile = None,
    granularity: Annotated[
        options.Granularity, typer.Option(help="Without --bounds: what stand-in bounds are for.")
    ] = options.Granularity.NEURON,
    backends: Annotated[
        str | None,
        typer.Option(
            help="Of auto, triton, onnxruntime, openvino, compile, eager, with commas between; all that can run when "
            "omitted."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed, in turn with the others.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.01, help="How long each is timed a round.")] = 0.5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of torch on the CPU; its own choice when omitted.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the results as JSON here.", metavar="FILE")
    ] = None,
    data: options.OptionalData = None,
    input_shape: options.InputShape = None,
    weights: options.Weights = None,
    model_args: options.ModelArgs = "{}",
    device: options.Device = "auto",
    dtype: options.DTypeOption = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Time the model with bounds and without, each way in a process of its own, in turn."""
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    if output is not None:
        check_writable(output, inputs={"--model": model, "--bounds": bounds, "--weights": weights, "--data": data})
    batches = _parse_batches(batch)

    from unit_fast.bounds import Bounds
    from unit_fast.capture import capture
    from unit_fast.cli.contenders import UNCLAMPED, Contender, load_same_model
    from unit_fast.cli.devices import parse_device
    from unit_fast.cli.models import check_runs
    from unit_fast.sites import find_sites
    from unit_fast.timing import interleaved

    with terminal.warnings_as_notes(), tempfile.TemporaryDirectory() as folder:
        place = parse_device(device)
        chosen = _parse_backends(backends, place, dtype)
        inputs = (data, input_shape, size, mean, std)
        file = bounds if bounds is not None else Path(folder) / "bounds.safetensors"
        learned = Bounds.load(bounds) if bounds is not None else None
        loaded = load_same_model(model, weights, model_args, place)
        example = _example(loaded, inputs, place)
        check_runs(loaded, example)
        if learned is not None:
            captured = capture(loaded, example)
            learned.require_model(captured.meta["fingerprint"], find_sites(captured))
            del captured
        else:
            terminal.note("no --bounds: timing with stand-ins from the statistics of random inputs; speed is the same")
            _stand_in_bounds(loaded, example, granularity.value).save(file)
        del loaded
        common = (model, weights, model_args, file, inputs, batches, str(place), dtype and str(dtype), threads)
        contenders = [Contender(False, way, *common) for way in UNCLAMPED if backends is None or way in chosen]
        contenders += [Contender(True, way, *common) for way in chosen]
        with progress_bar(terminal, "timing") as advance:
            found = interleaved(
                {contender.name: contender for contender in contenders},
                rounds=rounds,
                seconds=seconds,
                progress=advance,
            )
    results = _rows(contenders, found)
    values = {"model": model, "environment": _environment(str(place), threads), "results": results}
    if output is not None:
        _save(output, values)
    terminal.show(_table(results, batches))
    for row in results:
        if "reason" in row:
            terminal.warn(f"{row['backend']} ({'sanitised' if row['clamped'] else 'unclamped'}): {row['reason']}")
    if output is not None:
        terminal.note(f"wrote {output}")
    terminal.result(values)


def _parse_batches(text: str) -> tuple[int, ...]:
    try:
        batches = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise DataError(f"--batch {text}: expected whole numbers with commas between, such as 1,32") from error
    if min(batches) < 1 or len(set(batches)) < len(batches):
        raise DataError(f"--batch {text}: expected numbers of 1 and more, each once")
    return batches


def _parse_backends(text: str | None, device: "torch.device", dtype: str | None) -> list[str]:
    import torch

    from unit_fast.errors import BackendUnavailableError
    from unit_fast.runtime.backends import Backend, unavailable

    known = get_args(Backend)
    asked = known if text is None else tuple(part.strip() for part in text.split(","))
    chosen = []
    for backend in asked:
        if backend not in known:
            raise BackendUnavailableError(f"--backends {text}: {backend!r} is none of {', '.join(known)}")
        reason = unavailable(backend, device, getattr(torch, dtype or "float32")) if backend != "auto" else None
        if reason is None:
            chosen.append(backend)
        elif text is not None:
            raise BackendUnavailableError(f"--backends {backend}: it cannot run here: {reason}")
    return chosen


def _example(loaded: "AnyModel", inputs: tuple[Any, ...], device: "torch.device") -> "Example":
    from torch.utils import _pytree as pytree

    from unit_fast.cli.example import example_input

    def moved(leaf: Any) -> Any:
        return leaf.to(device) if hasattr(leaf, "to") else leaf

    example: Example = pytree.tree_map(moved, example_input(loaded, *inputs))
    return example


def _stand_in_bounds(loaded: "AnyModel", example: "Example", granularity: "Granularity") -> "Bounds":
    import torch

    from unit_fast.calibration import MeanStd, calibrate
    from unit_fast.runtime.calls import Call

    call = Call.from_example(example).of_size(_SAMPLES)
    generator = torch.Generator().manual_seed(0)
    noise = call.map_batched(
        lambda rows: torch.rand(rows.shape, generator=generator).to(rows) if rows.is_floating_point() else rows,
        _SAMPLES,
    )
    inputs = noise.kwargs or (noise.args[0] if len(noise.args) == 1 else noise.args)
    labels = torch.arange(_SAMPLES) % 2  # statistics do not ask for them, the split does
    return calibrate(loaded, [(inputs, labels)], MeanStd(2.0), granularity, example_input=example, batch_size=8)


def _rows(contenders: "list[Contender]", found: "Results") -> list[dict[str, Any]]:
    from unit_fast.timing import Failure

    rows: list[dict[str, Any]] = []
    for contender in contenders:
        who = {"backend": contender.backend, "clamped": contender.clamped}
        timings = found[contender.name]
        if isinstance(timings, Failure):
            rows.append(who | {"reason": timings.reason})
            continue
        for batch in contender.batches:
            timing = timings[str(batch)]
            figures = {name: 1000 * getattr(timing, name) for name in ("median", "p20", "p80")}
            rows.append(
                who
                | {"batch": batch, "calls": timing.calls, "samples_per_second": batch / timing.median}
                | {f"{name}_ms": value for name, value in figures.items()}
            )
    return rows


def _environment(device: str, threads: int | None) -> dict[str, Any]:
    import torch

    from unit_fast.cli.env import versions

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else torch.backends.cpu.get_cpu_capability()
    return {"device": f"{device} ({name})", "threads": threads or torch.get_num_threads(), "versions": versions()}


def _table(results: list[dict[str, Any]], batches: tuple[int, ...]) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title="latency: median (20th to 80th percentile), ms", title_justify="left")
    for heading in ("backend", "bounds"):
        table.add_column(heading, no_wrap=True)
    for batch in batches:
        table.add_column(f"batch {batch}", justify="right")
        table.add_column("samples/s", justify="right")
    cells: dict[tuple[str, bool], dict[int, tuple[str, str]]] = {}
    for row in results:
        by_batch = cells.setdefault((row["backend"], row["clamped"]), {})
        if "batch" in row:
            spread = f"{row['median_ms']:.2f} ({row['p20_ms']:.2f} to {row['p80_ms']:.2f})"
            by_batch[row["batch"]] = (spread, f"{row['samples_per_second']:,.0f}")
    for (backend, clamped), by_batch in cells.items():
        figures = [text for batch in batches for text in by_batch.get(batch, ("–", "–"))]
        table.add_row(backend, "yes" if clamped else "no", *figures)
    return table


def _save(path: Path, values: dict[str, Any]) -> None:
    import json

    from unit_fast.files import atomic_write

    text = json.dumps(values, indent=1) + "\n"
    atomic_write(path, lambda temporary: temporary.write_text(text))
