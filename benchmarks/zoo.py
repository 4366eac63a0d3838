"""Which networks unit_fast takes as they are: of many kinds that torchvision, timm and transformers have.

    python -m benchmarks.zoo                       # all that are installed, a process each, two at once
    python -m benchmarks.zoo --only "timm:vit*" --jobs 4
    python -m benchmarks.zoo --until compiled      # with that step too, which takes longer than the others together
    python -m benchmarks.zoo --one timm:resnet10t  # one, here: what it says as JSON

Needs the extra "zoo"; what is not installed is left out. Weights are random, so nothing here says how well a network is
sanitised; only whether it is, and whether that is right. Each goes through these steps, in order, and one that fails is
followed by the others where they can do without it:

captured   a plain graph, with sites
identity   with bounds at the largest activations of two samples, these get the very outputs of the model
fused      the graph for our kernels, by their references: as the sanitised graph, with bounds that bind
onnx       ``export_onnx``, verified in ONNX Runtime
openvino   the file in OpenVINO: as the sanitised graph
compiled   ``sanitize(backend="compile")``, warmed up for one sample and two: as the sanitised graph

Results go to ``results/zoo.json``, network by network. Those that are there from the same versions of the libraries are
kept, whatever of unit_fast has changed since: delete the file to try all anew.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import unit_fast as uf
from benchmarks.results_file import RESULTS, write_results
from benchmarks.zoo_networks import NETWORKS, SAMPLES, make
from unit_fast.capture import Example, call_arguments, capture
from unit_fast.export.openvino_model import OpenVinoModel
from unit_fast.fusion.fuse import fuse
from unit_fast.fusion.fuse_max_pool2d import fuse_max_pool2d
from unit_fast.runtime.agreement import difference
from unit_fast.sites import find_sites, insert_bounds

STEPS = ("captured", "identity", "fused", "onnx", "openvino", "compiled")
SECONDS = 900
"""After which a network is given up."""
REPEATS = 4
"""Of the samples for calibration, which keeps a fifth of them for validation: each is fitted to at least once."""
BINDING = 0.7
"""Of the largest activations: bounds that a good part of them exceeds."""

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the networks that were asked for; returns 0 whatever they came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="a pattern over names, such as timm:* or timm:vit*")
    parser.add_argument("--until", choices=STEPS, default="openvino", help="the last step (openvino)")
    parser.add_argument("--one", help="try this one here, and write nothing", metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once (2)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results (benchmarks/results)")
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(tried(options.one, options.until)))
        return 0
    rows = _kept(options.out)
    done = {name for name, row in rows.items() if STEPS.index(row["until"]) >= STEPS.index(options.until)}
    wanted = [name for name in NETWORKS if fnmatchcase(name, options.only) and find_spec(name.split(":")[0])]
    if not wanted:
        parser.error(f"--only {options.only!r} matches no network that is installed; names are such as {NETWORKS[0]}")
    with ThreadPoolExecutor(options.jobs) as pool:
        started = [pool.submit(_in_a_process, name, options.until) for name in wanted if name not in done]
        for name, row in (future.result() for future in as_completed(started)):
            rows[name] = row | {"until": options.until}
            failed = {step: reason for step, reason in row["steps"].items() if reason}
            print(f"{name}: {row.get('sites', 0)} sites, {row['seconds']:.0f} s {failed or ''}", flush=True)
            write_results("zoo", {"networks": rows, "versions": _versions()}, options.out)
    return 0


def _kept(folder: Path) -> dict[str, Row]:
    path = folder / "zoo.json"
    figures = json.loads(path.read_text())["figures"] if path.is_file() else {}
    return figures["networks"] if figures.get("versions") == _versions() else {}


def _versions() -> dict[str, str]:
    sources = dict.fromkeys(name.split(":")[0] for name in NETWORKS)
    return {source: version(source) for source in sources if find_spec(source)}


def _in_a_process(name: str, until: str) -> tuple[str, Row]:
    started = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.zoo", "--one", name, "--until", until]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment, check=False)
        lines = run.stdout.splitlines()
        row: Row = json.loads(lines[-1]) if run.returncode == 0 and lines else _lost(run)
    except subprocess.TimeoutExpired:
        row = {"steps": {"captured": f"took more than {SECONDS} s for all steps"}}
    return name, row | {"seconds": time.monotonic() - started}


def _lost(run: "subprocess.CompletedProcess[str]") -> Row:
    last = (run.stderr.strip().splitlines() or ["no word"])[-1]
    return {"steps": {"captured": f"the process ended with {run.returncode}: {last}"}}


def tried(name: str, until: str = "openvino") -> Row:
    """What a network comes to: by step None, or why not; how many sites, and how many clamps ride on a product."""
    row: Row = {"steps": {}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for step, outcome in _steps(*make(name), row):
            row["steps"][step] = outcome
            if step == until:
                break
    return row


def _steps(model: nn.Module, example: Example, row: Row) -> Iterator[tuple[str, str | None]]:
    found: dict[str, Any] = {}

    def attempt(step: str, check: Callable[[], str | None]) -> tuple[str, str | None]:
        try:
            return step, check()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the network came to
            return step, f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"

    def captured() -> None:
        graph = capture(model, example)
        row["sites"] = len(find_sites(graph))
        found["graph"] = graph

    def identity() -> str | None:
        bounds = uf.calibrate(model, [(example, torch.arange(SAMPLES))] * REPEATS, uf.Maximum(), logits=_scores)
        args, kwargs = call_arguments(example)
        found["bounds"] = replace(bounds, tensors={site: _binding(bound) for site, bound in bounds.items()})
        found["sanitised"] = insert_bounds(found["graph"], dict(found["bounds"].items()))
        exact = insert_bounds(found["graph"], dict(bounds.items()))
        return difference(exact(*args, **kwargs), model(*args, **kwargs))

    def fused() -> str | None:
        graph = fuse(found["sanitised"])
        fuse_max_pool2d(graph)
        holders = [str(node.target).split(".")[1] for node in graph.graph.nodes if "site" in node.meta]
        row["clamps"] = {kind: holders.count(kind) for kind in sorted(set(holders))}
        args, kwargs = call_arguments(example)
        return difference(graph(*args, **kwargs), found["sanitised"](*args, **kwargs))

    def compilation() -> None:
        uf.sanitize(model, found["bounds"], example, backend="compile").warmup([1, 2])

    def onnx() -> None:
        found["file"] = uf.export_onnx(
            model, found["bounds"], Path(found["folder"]) / "model.onnx", example_input=example
        ).path

    def openvino() -> str | None:
        args, kwargs = call_arguments(example)
        file = OpenVinoModel(found["file"], threads=torch.get_num_threads())
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        inputs = {name: tensor.numpy() for name, tensor in zip(file.input_names, tensors, strict=True)}
        expected = [leaf for leaf in pytree.tree_leaves(found["sanitised"](*args, **kwargs)) if leaf is not None]
        return difference(list(file.run(inputs).values()), expected)

    yield attempt("captured", captured)
    if "graph" not in found:
        return
    yield attempt("identity", identity)
    if "sanitised" not in found:
        return
    yield attempt("fused", fused)
    with tempfile.TemporaryDirectory(prefix="zoo_") as folder:
        found["folder"] = folder
        yield attempt("onnx", onnx)
        if "file" in found:
            yield attempt("openvino", openvino)
    yield attempt("compiled", compilation)


def _binding(bound: Tensor) -> Tensor:
    return torch.where(bound > 0, BINDING * bound, bound)


def _scores(output: Any) -> Tensor:
    """Something that classes can be told by, of whatever a network returns."""
    first = next(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return first.flatten(2).mean(2) if first.ndim > 2 else first


if __name__ == "__main__":
    sys.exit(main())
