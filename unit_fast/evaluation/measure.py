"""The evaluation itself: one pass over a loader, clean and triggered, one or two models."""

import time
from collections.abc import Callable, Iterable, Sequence, Sized
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from unit_fast.errors import DataError
from unit_fast.evaluation.batches import Batch, labelled_batches
from unit_fast.evaluation.classifier import Classifier, inference
from unit_fast.evaluation.detection import Readings
from unit_fast.evaluation.examples import Example, ExampleDraw, picture
from unit_fast.evaluation.report import Report
from unit_fast.evaluation.tally import Tally
from unit_fast.evaluation.triggers import describe, stamped

Target = int | str | Callable[[Tensor], Tensor]


def evaluate(
    model: Callable[..., Any],
    loader: Iterable[Any],
    *,
    trigger: Callable[[Tensor], Tensor] | None = None,
    target: Target | None = None,
    logits: Callable[[Any], Any] | None = None,
    baseline: Report | Callable[..., Any] | None = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[int, int | None], object] | None = None,
    class_names: Sequence[str] = (),
    confidence: float = 0.95,
    examples: int = 12,
) -> Report:
    """Measure how right a model is on clean samples and what a trigger makes of it.

    One pass over the loader, nothing kept but counts; the model's modes are afterwards what they were. With a trigger,
    a model that measures its samples (by ``inspect(x)`` or ``monitor(x)``, as what :func:`unit_fast.sanitize` returns
    does) is also judged as a detector of triggers; then a number a sample and measure is kept.

    Args:
        model: an ``nn.Module``, any function from a batch to logits (N, classes), or an ONNX Runtime session.
        loader: yields batches ``(x, y)``: x (N, …), y (N,) whole numbers from 0. With a trigger, x are images
            (N, C, H, W) in [0, 1].
        trigger: takes a batch and returns it triggered; one of :mod:`~unit_fast.evaluation.triggers` or any function.
        target: the class the attack aims at; ``"all-to-all"`` for (y + 1) mod classes; or a function from labels (N,)
            to targets (N,). Samples already of their target class count neither for ASR nor for RA.
        logits: takes the model's output and returns the logits. None: the output itself, or its ``.logits``.
        baseline: the undefended model, which is then measured in the same pass, or its report.
        preprocess: applied to clean and triggered batches before the model: the normalisation.
        device: where batches are moved. None: to where the model's parameters are.
        progress: called after every batch with the batches done and their number, where the loader knows it.
        class_names: names for the report, one a class.
        confidence: of the intervals shown.
        examples: how many samples are kept as pictures, drawn evenly; 0 for none.

    Returns:
        The report; with a baseline, its ``baseline`` and ``defence_effectiveness`` are set.

    Raises:
        DataError: an empty loader, missing or impossible labels, no sample outside the target class, images of a
            wrong shape or range, NaN in the output, a baseline report of another measurement.
    """
    if isinstance(target, SupportsIndex) and not isinstance(target, bool):
        target = int(target)  # NumPy's whole numbers
    _check_options(trigger, target)
    named = {"logits": logits, "preprocess": preprocess, "device": device}
    classifiers = [Classifier(model, name="model", **named)]  # type: ignore[arg-type]  # typed one by one above
    if baseline is not None and not isinstance(baseline, Report):
        classifiers.append(Classifier(baseline, name="baseline", **named))  # type: ignore[arg-type]
    run = _Run(classifiers, trigger, target, ExampleDraw(examples if trigger is not None else 0))
    total = len(loader) if isinstance(loader, Sized) else None

    started = time.perf_counter()
    with inference([classifier.model for classifier in classifiers]):
        for batch in labelled_batches(loader):
            run.add(batch)
            if progress is not None:
                progress(batch.number + 1, total)
    reports = run.reports(tuple(class_names), confidence, time.perf_counter() - started)
    before = reports[1] if len(reports) > 1 else baseline
    if not isinstance(before, Report):
        return reports[0]
    _check_comparable(reports[0], before)
    return reports[0].with_baseline(before)


class _Run:
    """The state of one evaluation: counts and examples of each model."""

    def __init__(
        self,
        classifiers: Sequence[Classifier],
        trigger: Callable[[Tensor], Tensor] | None,
        target: Target | None,
        draw: ExampleDraw,
    ) -> None:
        self._classifiers = classifiers
        self._trigger = trigger
        self._target = target
        self._draw = draw
        self._tallies: list[Tally] = []
        self._readings = [Readings() for _ in classifiers]
        self._samples = 0
        if trigger is not None:
            for classifier in classifiers:
                classifier.observe()

    def add(self, batch: Batch) -> None:
        clean = []
        for number, readings in enumerate(self._readings):
            predictions, measures = self._predict(number, batch.inputs, f"batch {batch.number}")
            clean.append(predictions)
            readings.add_clean(measures)
        classes = self._tallies[0].classes
        highest = int(batch.labels.max())
        if highest >= classes:
            raise DataError(
                f"batch {batch.number}: label {highest} is out of range, the model has classes 0 to {classes - 1}"
            )
        for tally, predictions in zip(self._tallies, clean, strict=True):
            tally.add_clean(batch.labels, predictions)
        if self._trigger is not None:
            self._add_triggered(batch, clean)
        self._samples += len(batch.labels)

    def _add_triggered(self, batch: Batch, clean: list[Tensor]) -> None:
        assert self._trigger is not None
        assert self._target is not None
        targets = _targets(self._target, batch, self._tallies[0].classes)
        attacked = targets != batch.labels
        if not bool(attacked.any()):
            return
        inputs = batch.inputs.to(self._classifiers[0].device) if self._classifiers[0].device else batch.inputs
        images = stamped(self._trigger, inputs)
        # The whole batch runs, not only the attacked samples: compiled and exported models keep their batch size.
        what = f"triggered batch {batch.number}"
        triggered = []
        for number, readings in enumerate(self._readings):
            predictions, measures = self._predict(number, images, what)
            triggered.append(predictions)
            readings.add_triggered({name: values[attacked] for name, values in measures.items()})
        for tally, predictions in zip(self._tallies, triggered, strict=True):
            tally.add_triggered(batch.labels[attacked], targets[attacked], predictions[attacked])
        for place in attacked.nonzero().flatten().tolist():
            self._show(place, batch, targets, images, clean, triggered)

    def _predict(self, number: int, inputs: Tensor, what: str) -> tuple[Tensor, dict[str, Tensor]]:
        classifier = self._classifiers[number]
        moved = inputs if classifier.device is None else inputs.to(classifier.device)
        predictions, classes, measures = classifier.predict(moved, what)
        if number == len(self._tallies):
            self._tallies.append(Tally(classes))
        if classes != self._tallies[0].classes:
            raise DataError(
                f"{classifier.name}, {what}: expected {self._tallies[0].classes} classes as before, found {classes}"
            )
        return predictions, measures

    def _show(
        self, place: int, batch: Batch, targets: Tensor, images: Tensor, clean: list[Tensor], triggered: list[Tensor]
    ) -> None:
        slot = self._draw.place()
        if slot is None:
            return
        pictures = picture(batch.inputs[place]), picture(images[place])
        if pictures[0] is None or pictures[1] is None:
            return
        self._draw.put(
            slot,
            tuple(
                Example(
                    index=self._samples + place,
                    label=int(batch.labels[place]),
                    target=int(targets[place]),
                    clean_prediction=int(clean[number][place]),
                    triggered_prediction=int(triggered[number][place]),
                    clean_png=pictures[0],
                    triggered_png=pictures[1],
                )
                for number in range(len(self._classifiers))
            ),
        )

    def reports(self, class_names: tuple[str, ...], confidence: float, seconds: float) -> list[Report]:
        classes = self._tallies[0].classes
        if class_names and len(class_names) != classes:
            raise DataError(
                f"class_names: expected {classes} names, as the model has classes, found {len(class_names)}"
            )
        provenance = _provenance(self._classifiers[0], seconds)
        reports = []
        for number, tally in enumerate(self._tallies):
            attack, robust = tally.attacked() if self._trigger is not None else (None, None)
            reports.append(
                Report(
                    benign=tally.benign(),
                    attack=attack,
                    robust=robust,
                    classes=tally.by_class(),
                    detection=self._readings[number].detections(),
                    trigger=None if self._trigger is None else describe(self._trigger),
                    target=_target_name(self._target),
                    class_names=class_names,
                    confidence=confidence,
                    examples=self._draw.of_model(number),
                    provenance=provenance,
                )
            )
        return reports


def _check_options(trigger: object, target: Target | None) -> None:
    if trigger is not None and not callable(trigger):
        raise DataError(
            f"trigger: expected a function of the batch, found {type(trigger).__name__}; see triggers.parse"
        )
    if (trigger is None) != (target is None):
        given, missing = ("trigger", "target") if target is None else ("target", "trigger")
        raise DataError(f"{given}= is given without {missing}=; an attack needs both, a clean evaluation neither")
    if isinstance(target, bool) or not (target is None or isinstance(target, int | str) or callable(target)):
        raise DataError(f"target: expected a class, 'all-to-all' or a function of the labels, found {target!r}")
    if isinstance(target, str) and target != "all-to-all":
        raise DataError(f"target: expected a class number or 'all-to-all', found {target!r}")
    if isinstance(target, int) and target < 0:
        raise DataError(f"target: expected a class, 0 or more, found {target}")


def _targets(target: Target, batch: Batch, classes: int) -> Tensor:
    if isinstance(target, int):
        targets = torch.full_like(batch.labels, target)
    elif isinstance(target, str):
        targets = (batch.labels + 1) % classes
    else:
        targets = torch.as_tensor(target(batch.labels.clone())).to("cpu", torch.int64)
        if targets.shape != batch.labels.shape:
            raise DataError(
                f"target: the function must return {len(batch.labels)} classes, found {tuple(targets.shape)}"
            )
    if int(targets.min()) < 0 or int(targets.max()) >= classes:
        wrong = int(targets.max()) if int(targets.max()) >= classes else int(targets.min())
        raise DataError(f"target: class {wrong} is out of range, the model has classes 0 to {classes - 1}")
    return targets


def _target_name(target: Target | None) -> int | str | None:
    if target is None or isinstance(target, int | str):
        return target
    return str(getattr(target, "__qualname__", type(target).__qualname__))


def _check_comparable(report: Report, before: Report) -> None:
    for name, mine, theirs in (
        ("clean samples", report.benign.total, before.benign.total),
        ("classes", len(report.classes), len(before.classes)),
        ("trigger", report.trigger, before.trigger),
        ("target", report.target, before.target),
        ("triggered samples", report.attack and report.attack.total, before.attack and before.attack.total),
    ):
        if mine != theirs:
            raise DataError(
                f"baseline: its {name} ({theirs}) differ from this evaluation's ({mine}); "
                "measure both on the same data with the same trigger, or give the model as baseline="
            )


def _provenance(classifier: Classifier, seconds: float) -> dict[str, str | float]:
    try:
        ours = version("unit_fast")
    except PackageNotFoundError:
        ours = "not installed"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "unit_fast": ours,
        "torch": torch.__version__,
        "device": str(classifier.device or "as the data"),
        "seconds": round(seconds, 3),
    }
