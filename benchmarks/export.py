"""What the exports cost and whether they hold.

    python -m benchmarks.export                       # all parts
    python -m benchmarks.export --part cost,openvino  # some
    python -m benchmarks.export --part forms,noise --models resnet20_32,vit_32

Parts, each written to ``results/export_PART.json``, row by row:

cost      ONNX Runtime on the CPU, ResNet-18 for images of 32×32: each form by granularity, against the same net without
          clamps
int8      the same net in int8 by granularity, against the int8 net that onnxruntime.quantization makes of the net
          without clamps, and against float32 without clamps
openvino  the forms that OpenVINO fuses and int8, in OpenVINO, against float32 without clamps
forms     every network, form and precision: how the sites were clamped, parity and size; or why it is refused
noise     networks in int8: by onnxruntime.quantization, and by us with biases corrected and not
accuracy  backdoored classifiers of traffic signs: accuracy and attack success in torch and from files of each
          precision, all test images; left out where the evaluation data beside the project is absent

In the last three nothing is timed, so other work beside them does no harm.

Timed are whole calls with two threads, idle threads asleep. Every file has a process of its own; all of them stay
alive, and bursts of half a second alternate in an order drawn anew each round; then all start anew, eight times
(`unit_fast.timing`). Every export is verified before it is timed.
"""

import argparse
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.export_accuracy import NOISE, accuracy, noise
from benchmarks.export_files import PLAIN, PLAIN_INT8, Row, Way, Workshop
from benchmarks.models import available
from benchmarks.results_file import RESULTS, write_results
from unit_fast.errors import UnitFastError
from unit_fast.export import OnnxRuntimeModel
from unit_fast.export.openvino_model import shared_core
from unit_fast.timing import Call, Failure, interleaved

_logger = logging.getLogger("benchmarks.export")

NETWORK = "resnet18_32"
SUITE = ("resnet18_32", "resnet20_32", "vgg_32", "densenet_32", "vit_32", "mobilenet_v2_32", "efficientnet_lite0")
THREADS = 2
BATCHES = (1, 16)

Builder = Callable[[], Mapping[str, Call]]


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        network: that is timed.
        rounds: of bursts of each file and batch size, in every process.
        seconds: of a burst. The slowest call takes 0.15 s, so eighteen bursts of three make fifty.
        restarts: of every process, since one that runs the very same file can be 5 % faster than another.
        networks: of the parts ``forms`` and ``noise``; None for all that each has.
    """

    network: str = NETWORK
    rounds: int = 3
    seconds: float = 0.45
    restarts: int = 8
    networks: Sequence[str] | None = None


COST = (
    PLAIN,
    Way("clip", "tensor"),
    Way("folded", "tensor"),
    Way("auto", "tensor"),
    Way("folded", "channel"),
    Way("mul_clip", "channel"),
    Way("min", "channel"),
    Way("auto", "channel"),
    Way("min", "neuron"),
    Way("min", "neuron", optimized=True),
    Way("clip", "tensor", inspect=True),
    Way("min", "channel", inspect=True),
    Way("min", "neuron", inspect=True),
    Way("min", "neuron", optimized=True, inspect=True),
)
INT8 = (
    PLAIN,
    PLAIN_INT8,
    Way("auto", "tensor", "int8"),
    Way("auto", "channel", "int8"),
    Way("auto", "neuron", "int8"),
)
OPENVINO = (
    PLAIN,
    Way("clip", "tensor"),
    Way("mul_clip", "channel"),
    Way("min", "neuron"),
    PLAIN_INT8,
    Way("auto", "channel", "int8"),
    Way("auto", "neuron", "int8"),
)
FORMS = (
    Way("clip", "tensor"),
    Way("folded", "tensor"),
    Way("mul_clip", "channel"),
    Way("folded", "channel"),
    Way("min", "neuron"),
    Way("auto", "tensor", "fp16"),
    Way("auto", "channel", "fp16"),
    Way("auto", "neuron", "fp16"),
    Way("auto", "channel", "int8"),
    Way("auto", "neuron", "int8"),
)


def onnxruntime_calls(path: Path) -> dict[str, Call]:
    """Calls of a file in ONNX Runtime, by batch size; runs in the process that is timed."""
    model = OnnxRuntimeModel(path, threads=THREADS)
    return {str(batch): partial(model.run, feed) for batch, feed in _feeds(model).items()}


def openvino_infer(path: Path) -> Callable[[Any], Any]:
    """What runs a file in OpenVINO: takes its inputs as arrays, by name or in a list."""
    settings = {
        "INFERENCE_NUM_THREADS": THREADS,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16, where the processor has it
    }
    infer: Callable[[Any], Any] = shared_core().compile_model(path, "CPU", settings).create_infer_request().infer
    return infer


def openvino_calls(path: Path) -> dict[str, Call]:
    """Calls of a file in OpenVINO, by batch size; runs in the process that is timed."""
    infer = openvino_infer(path)
    return {str(batch): partial(infer, feed) for batch, feed in _feeds(OnnxRuntimeModel(path)).items()}


def _feeds(model: OnnxRuntimeModel) -> dict[int, dict[str, np.ndarray]]:
    (value,) = model.session.get_inputs()
    dtype = np.float16 if value.type == "tensor(float16)" else np.float32
    drawn = np.random.default_rng(0).standard_normal((max(BATCHES), *value.shape[1:])).astype(dtype)
    return {batch: {value.name: drawn[:batch]} for batch in BATCHES}


def _timed(
    effort: Effort, ways: Sequence[Way], runtime: str, calls: Callable[[Path], dict[str, Call]]
) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        builders: dict[str, Builder] = {}
        for way in ways:
            try:
                builders[str(way)] = partial(calls, workshop.file(effort.network, way))
            except UnitFastError as error:
                _logger.warning("%s is not timed: %s", way, error)
                yield _described(effort.network, way) | {"reason": str(error)}
        found = interleaved(builders, rounds=effort.rounds, seconds=effort.seconds, restarts=effort.restarts)
    for way in ways:
        timings = found.get(str(way))
        if isinstance(timings, Failure):
            yield _described(effort.network, way) | {"runtime": runtime, "reason": timings.reason}
            continue
        for batch, timing in (timings or {}).items():
            row = _described(effort.network, way) | {"runtime": runtime, "batch": int(batch), "threads": THREADS}
            row |= {f"{name}_ms": 1e3 * getattr(timing, name) for name in ("median", "p20", "p80")}
            for name, base in (("ratio", PLAIN), ("int8_ratio", PLAIN_INT8)):
                other = found.get(str(base))
                if other is not None and not isinstance(other, Failure):
                    row[name] = timing.median / other[batch].median
            yield row | {"calls": timing.calls}


def _described(network: str, way: Way) -> Row:
    return {
        "network": network,
        "form": ", ".join([way.form, *["optimised"] * way.optimized, *["inspect"] * way.inspect]),
        "granularity": way.granularity,
        "precision": way.precision,
        "maker": way.maker,
    }


def cost(effort: Effort) -> Iterator[Row]:
    """Every form in ONNX Runtime; ``ratio`` is time over float32 without clamps."""
    return _timed(effort, COST, "onnxruntime", onnxruntime_calls)


def int8(effort: Effort) -> Iterator[Row]:
    """int8 in ONNX Runtime; ``int8_ratio`` is time over int8 without clamps."""
    return _timed(effort, INT8, "onnxruntime", onnxruntime_calls)


def openvino(effort: Effort) -> Iterator[Row]:
    """What OpenVINO makes of the forms, and of int8."""
    return _timed(effort, OPENVINO, "openvino", openvino_calls)


def forms(effort: Effort) -> Iterator[Row]:
    """Every network, form and precision: verified, or refused with a reason."""
    for name in effort.networks or SUITE:
        if (reason := available(name)) is not None:
            _logger.warning("%s is left out: %s", name, reason)
            continue
        with tempfile.TemporaryDirectory() as folder:
            workshop = Workshop(Path(folder))
            for way in FORMS:
                yield _described(name, way) | _outcome(workshop, name, way)


def _outcome(workshop: Workshop, name: str, way: Way) -> Row:
    try:
        report = workshop.export(name, way)
    except UnitFastError as error:
        return {"error": type(error).__name__, "reason": str(error)}
    row: Row = {
        "sites": dict(sorted(Counter(site.form for site in report.sites).items())),
        "bytes": report.size,
    }
    if report.parity is not None:
        row |= {"max_rel_error": report.parity.max_rel, "output_rel_error": report.parity.output_rel}
        row |= {"agreement": report.parity.agreement}
    if report.accuracy is not None:
        row |= {"int8_agreement": report.accuracy.agreement, "int8_snr_db": report.accuracy.signal_to_noise}
    report.path.unlink()
    return row


PARTS: dict[str, Callable[[Effort], Iterator[Row]]] = {
    "cost": cost,
    "int8": int8,
    "openvino": openvino,
    "forms": forms,
    "noise": lambda effort: noise(effort.networks or NOISE),
    "accuracy": lambda _effort: accuracy(),
}


def run(parts: Sequence[str], effort: Effort, folder: Path = RESULTS) -> None:
    """Measure and write ``export_PART.json``, a row at a time; rows of networks that are not measured now stay."""
    for part in parts:
        before, rows = _written(part, folder), list[Row]()
        for row in PARTS[part](effort):
            rows.append(row)
            _logger.info("%s: %s", part, row)
            measured = {row["network"] for row in rows}
            write_results(f"export_{part}", [row for row in before if row["network"] not in measured] + rows, folder)


def _written(part: str, folder: Path) -> list[Row]:
    file = folder / f"export_{part}.json"
    rows: list[Row] = json.loads(file.read_text())["figures"] if file.exists() else []
    return rows


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default=",".join(PARTS), help="some of these, commas between; all when omitted")
    parser.add_argument("--models", help="networks of the parts forms and noise, commas between; all when omitted")
    options = parser.parse_args()
    parts, networks = options.part.split(","), options.models.split(",") if options.models else None
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"there is no part {unknown[0]!r}; the parts are: {', '.join(PARTS)}")
    logging.basicConfig(format="%(asctime)s %(message)s")
    _logger.setLevel(logging.INFO)
    run(parts, Effort(networks=networks))


if __name__ == "__main__":
    main()
