"""What calibration reaches and what it costs, on models that somebody else backdoored.

    python -m benchmarks.calibration                # all parts
    python -m benchmarks.calibration --part effect  # one

Parts, each written to ``results/calibration_PART.json``, row by row where it takes long:

effect      accuracy and attack success before and after, default recipe, up to three seeds, all test images
tolerance   the same with other tolerances than the default, one seed
published   the published search: what it reaches in mini-batches of 256
attacks     default recipe, two tolerances, 4,000 test images, networks that are backdoored here
            (:mod:`benchmarks.backdoored`; to train one takes minutes)
attacks_published  the published search on them
attacks_spent      the tolerance held by the accuracy, on them
spent       the tolerance held by the accuracy, on the networks of the effect, one seed
time        default recipe against the published one as its authors run it: the whole fit set in one batch, weight
            gradients on, a validation pass each step; 20 of its 300 steps are timed and scaled, both in turn
"""

import argparse
import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unit_fast as uf
from benchmarks import backdoored
from benchmarks.results_file import write_results
from tests import cifar, gtsrb
from tests.shared_data import ROOT
from unit_fast.calibration.split import split_by_class
from unit_fast.evaluation.triggers import ImageTrigger

_logger = logging.getLogger("benchmarks.calibration")

MODELS = ("gtsrb_vgg_badnets_target8", "gtsrb_vgg_trojan_wm_target2")
SEEDS = (0, 1, 2)
TOLERANCES = (0.01, 0.1)  # 0.03 is in the effect
SPENT = (0.03, 0.1)  # tolerances
PUBLISHED_STEPS = 300
TIMED_STEPS = 20
ROUNDS = 3


def effect() -> Iterator[dict[str, Any]]:
    """BA, ASR and RA of every model, granularity and seed, and the accuracy of the clean model."""
    for seed in SEEDS:
        for name in MODELS:
            for granularity in ("neuron", "channel"):
                yield _row(name, granularity, uf.Unit(), seed)
        yield _clean_row(uf.Unit(), seed)
    for name in MODELS:
        yield _row(name, "tensor", uf.Unit(), 0)


def tolerance() -> Iterator[dict[str, Any]]:
    """The trade-off that the tolerance sets, beside the default's in :func:`effect`."""
    for value in TOLERANCES:
        for name in MODELS:
            for granularity in ("neuron", "channel"):
                yield _row(name, granularity, uf.Unit(tolerance=value), 0) | {"tolerance": value}


def published() -> Iterator[dict[str, Any]]:
    """The published search in mini-batches, since in one batch it takes hours on a CPU."""
    for granularity in ("neuron", "channel"):
        for name in MODELS:
            yield _row(name, granularity, uf.Unit(recipe="paper", batch_size=256), 0)


def attacks() -> Iterator[dict[str, Any]]:
    """Networks that are backdoored here, by trigger and tolerance."""
    for name in backdoored.TRIGGERS:
        for value in (0.03, 0.1):
            yield _attacked_row(name, uf.Unit(tolerance=value)) | {"tolerance": value}


def attacks_published() -> Iterator[dict[str, Any]]:
    """The published search on the same."""
    for name in backdoored.TRIGGERS:
        yield _attacked_row(name, uf.Unit(recipe="paper", batch_size=256)) | {"tolerance": 0.03}


def attacks_spent() -> Iterator[dict[str, Any]]:
    """The search that spends its tolerance on the same."""
    for name in backdoored.TRIGGERS:
        for value in SPENT:
            yield _attacked_row(name, uf.Unit(tolerance=value, hold="accuracy")) | {"tolerance": value}


def spent() -> Iterator[dict[str, Any]]:
    """The search that spends its tolerance on the networks that the recipes were made with, and on the clean one."""
    for name in MODELS:
        yield _row(name, "neuron", uf.Unit(hold="accuracy"), 0) | {"tolerance": 0.03}
    for value in SPENT:
        yield _clean_row(uf.Unit(tolerance=value, hold="accuracy"), 0) | {"tolerance": value}


def time_against_published() -> Iterator[dict[str, Any]]:
    """Seconds of both, in turn, and their ratio; a row a round."""
    name = MODELS[0]
    x, y = gtsrb.load_images("calibration")
    for _ in range(ROUNDS):
        ours = _timed(lambda: uf.calibrate(gtsrb.load_model(name), [(x, y)]))[1]
        theirs = _published_seconds(gtsrb.load_model(name), x, y)
        yield {
            "model": name,
            "ours_seconds": ours,
            "published_seconds": theirs,
            "published_steps_timed": TIMED_STEPS,
            "ratio": theirs / ours,
        }


def _row(name: str, granularity: str, method: uf.Unit, seed: int) -> dict[str, Any]:
    return _measured(*_signs(name), method, granularity, seed) | {"model": name}


def _attacked_row(name: str, method: uf.Unit) -> dict[str, Any]:
    return _measured(*_attacked_here(name), method, "neuron", 0) | {"trigger": name}


@functools.cache
def _signs(name: str) -> tuple["_Case", uf.Report]:
    clean, test = gtsrb.load_images("calibration"), gtsrb.load_images("test")
    return _undefended(_Case(gtsrb.load_model(name), clean, test, *gtsrb.trigger_of(name)))


@functools.cache
def _attacked_here(name: str) -> tuple["_Case", uf.Report]:
    clean, test = backdoored.defenders_images(), cifar.load_pixels("test", 400)
    trigger = backdoored.TRIGGERS[name]()
    return _undefended(_Case(backdoored.load(name), clean, test, trigger, backdoored.TARGET))


class _Case(NamedTuple):
    model: nn.Module
    clean: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    trigger: ImageTrigger
    target: int

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images in mini-batches."""
        x, y = self.test
        return zip(x.split(250), y.split(250), strict=True)


def _undefended(case: _Case) -> tuple[_Case, uf.Report]:
    return case, uf.evaluate(case.model, case.batches(), trigger=case.trigger, target=case.target)


def _measured(case: _Case, before: uf.Report, method: uf.Unit, granularity: str, seed: int) -> dict[str, Any]:
    """Calibrate, and count what is left on the test images."""
    bounds, seconds = _timed(lambda: uf.calibrate(case.model, [case.clean], method, granularity, seed=seed))  # type: ignore[arg-type]
    sanitised = uf.sanitize(case.model, bounds, case.clean[0][:2], backend="eager")
    after = uf.evaluate(sanitised, case.batches(), trigger=case.trigger, target=case.target, baseline=before)
    excess = next(found for found in after.detection if found.measure == "excess")
    row: dict[str, Any] = {
        "granularity": granularity,
        "seed": seed,
        "accuracy": [before.benign_accuracy, after.benign_accuracy],
        "attack_success": [before.attack_success_rate, after.attack_success_rate],
        "robust_accuracy": [before.robust_accuracy, after.robust_accuracy],
        "defence_effectiveness": after.defence_effectiveness,
        "auroc": excess.auroc,
        "seconds": seconds,
    }
    return row


def _clean_row(method: uf.Unit, seed: int) -> dict[str, Any]:
    model = cifar.load_model()
    train, (x, y) = cifar.load_images("train", 150), cifar.load_images("test", 1000)
    test = list(zip(x.split(250), y.split(250), strict=True))
    bounds, seconds = _timed(lambda: uf.calibrate(model, [train], method, seed=seed))
    sanitised = uf.sanitize(model, bounds, x[:2], backend="eager")
    return {
        "model": "cifar10_resnet20_clean",
        "granularity": "neuron",
        "seed": seed,
        "accuracy": [uf.evaluate(run, test).benign_accuracy for run in (model, sanitised)],
        "seconds": seconds,
    }


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def _published_seconds(model: gtsrb.SignVGG, x: Tensor, y: Tensor) -> float:
    """Seconds the published search takes for all its steps, from a few of them: full batch, weight gradients on."""
    split = split_by_class(y, 0.8, shuffle=False)
    fit, validation = (x[split.fit], y[split.fit]), (x[split.validation], y[split.validation])

    def forward(images: Tensor, bounds: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        kept = []
        for layer in model.features:
            images = layer(images)
            if isinstance(layer, nn.ELU):
                kept.append(images)
                images = images if bounds is None else torch.clamp(images, max=bounds[len(kept) - 1].unsqueeze(0))
        return model.classifier(images.flatten(1)), kept

    start = time.perf_counter()
    activations = [a.detach() for a in forward(fit[0], None)[1]]
    params = [(a.mean(0) + 4 * a.std(0)).requires_grad_() for a in activations]
    del activations
    adam = torch.optim.Adam(params, lr=1e-3, betas=(0.5, 0.9))
    prepared = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(TIMED_STEPS):
        adam.zero_grad()
        clamped = [p.clamp(min=0) for p in params]
        loss = (
            F.cross_entropy(forward(fit[0], clamped)[0], fit[1]) + 1e-3 * torch.stack([p.mean() for p in clamped]).sum()
        )
        loss.backward()
        adam.step()
        with torch.no_grad():
            logits, _ = forward(validation[0], [p.clamp(min=0) for p in params])
            (logits.argmax(1) == validation[1]).float().mean().item()
    return prepared + (time.perf_counter() - start) * PUBLISHED_STEPS / TIMED_STEPS


PARTS = {
    "effect": effect,
    "tolerance": tolerance,
    "published": published,
    "attacks": attacks,
    "attacks_published": attacks_published,
    "attacks_spent": attacks_spent,
    "spent": spent,
    "time": time_against_published,
}


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="all when omitted; repeatable")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if not ROOT.is_dir():
        parser.error("the evaluation data beside the project is absent")
    for part in options.part or PARTS:
        rows = []
        for row in PARTS[part]():
            rows.append(row)
            _logger.info("%s: %s", part, row)
            write_results(f"calibration_{part}", rows)


if __name__ == "__main__":
    main()
