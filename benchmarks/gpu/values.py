"""Part "values": every shipped configuration × dtype × shapes against the reference; lists those that differ.

Results are compared with the reference in float64. Memory is filled with NaN before a kernel writes to it, so an
element never written shows. Every case runs in a process that may die without ending the sweep. Two controls that must
come out wrong show that the sweep can see what it looks for.
"""

import os
import time
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.pool import Outcome, run_tasks
from benchmarks.gpu.session import Session
from benchmarks.gpu.value_cases import ValueCase, controls, value_cases
from unit_fast.kernels import backward, conv2d, linear, pointwise, pooling, reference
from unit_fast.kernels.agreement import ROUNDED_TWICE, error, tolerance_of
from unit_fast.kernels.checks import conv_size
from unit_fast.kernels.configs import architecture
from unit_fast.kernels.layout import pack_bound, pack_weight

TORCH_DTYPE = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "tf32": torch.float32}
TASK_SECONDS = 60.0  # one compilation takes up to 8 s, more when all cores compile


def measure(session: Session) -> list[str]:
    """Run the sweep and write what differs, what failed, and the largest error of each kernel."""
    figures = sweep(session, cases_of(session))
    wrong = [
        f"{row['case']}: {row.get('error', row.get('failure'))}" for row in figures["differing"] + figures["failed"]
    ]
    agreeing = sum(kernel["agreeing"] for kernel in figures["kernels"].values())
    return [f"{agreeing} of {figures['cases']} cases agree, {len(figures['differing'])} differ", *wrong[:40]]


def cases_of(session: Session) -> list[ValueCase]:
    """All cases of the device's architecture; in a dry run the smallest of each configuration."""
    if session.dry_run:
        return smallest_cases(90)
    major, minor = torch.cuda.get_device_capability()
    return value_cases(architecture(major * 10 + minor), ("fp16", "bf16", "fp32", "tf32"))


def smallest_cases(column: int) -> list[ValueCase]:
    """Of every configuration of an architecture the smallest case in fp16."""
    smallest: dict[object, ValueCase] = {}
    for case in sorted(value_cases(column, ("fp16",)), key=ValueCase.size, reverse=True):
        smallest[case.operator, case.config, case.weight[2:] == (1, 1)] = case
    return list(smallest.values())


def sweep(session: Session, cases: list[ValueCase]) -> dict[str, Any]:
    """The figures of ``cases`` and the controls, written as they come.

    Raises:
        RuntimeError: a control came out right.
    """
    started = time.monotonic()
    figures: dict[str, Any] = {"complete": False, "cases": len(cases), "differing": [], "failed": [], "kernels": {}}
    rows: list[dict[str, Any]] = []
    caught: dict[str, str] = {}
    wrong_on_purpose = controls()
    tasks = [*wrong_on_purpose, *cases]
    arguments: dict[str, Any] = {"workers": session.workers, "task_seconds": TASK_SECONDS, "deadline": session.deadline}
    for outcome in run_tasks("benchmarks.gpu.values:compare", tasks, **arguments):
        if outcome.task in wrong_on_purpose:
            caught[outcome.task.fault] = _verdict(outcome)
        else:
            rows.append(_row(outcome))
        session.write_sometimes("values", figures | _summary(rows) | {"controls": caught})
    figures |= _summary(rows) | {"controls": caught, "seconds": time.monotonic() - started}
    figures["complete"] = len(rows) == len(cases) and len(caught) == len(wrong_on_purpose)
    session.write("values", figures)
    if missed := [fault for fault, verdict in caught.items() if verdict == "agrees"]:
        raise RuntimeError(f"the sweep is blind: what was done wrong on purpose came out right: {', '.join(missed)}")
    return figures


def _verdict(outcome: Outcome) -> str:
    if outcome.failure:
        return "failed"
    return "agrees" if outcome.result["error"] <= outcome.result["tolerance"] else "differs"


def _row(outcome: Outcome) -> dict[str, Any]:
    case: ValueCase = outcome.task
    row = {"case": case.name, "operator": case.operator, "dtype": case.dtype, "verdict": _verdict(outcome)}
    return row | (outcome.result or {"failure": outcome.failure})


def _summary(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Differing and failed rows whole; of the others the number and the largest error, by kernel and dtype."""
    rows = sorted(rows, key=lambda row: str(row["case"]))
    kernels: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["verdict"] == "agrees":
            kernel = kernels.setdefault(f"{row['operator']} {row['dtype']}", {"agreeing": 0, "largest_error": 0.0})
            kernel["agreeing"] += 1
            kernel["largest_error"] = max(kernel["largest_error"], row["error"])
    chosen = {verdict: [row for row in rows if row["verdict"] == verdict] for verdict in ("differs", "failed")}
    return {"done": len(rows), "differing": chosen["differs"], "failed": chosen["failed"], "kernels": kernels}


def compare(case: ValueCase) -> dict[str, float]:
    """Run one case: its error against float64, as ``agreement.error`` has it, and what would be tolerated."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    warnings.filterwarnings("ignore", message=".*deterministic", category=UserWarning)
    torch.use_deterministic_algorithms(True, warn_only=True)  # new memory is filled with NaN
    multiply_as(case.dtype)
    if case.fault == "crash":
        os._exit(3)
    operands = operands_of(case, device)
    found, exact = launched(case, operands), _truth(case, operands)
    products = case.operator in ("linear", "conv2d") and device == "cuda" and not _grouped(case)
    precision = {"fp32": "tf32x3", "tf32": "tf32"}.get(case.dtype, "ieee") if products else "ieee"
    largest = max(error(a, e) for a, e in zip(found, exact, strict=True))
    if device == "cuda":
        torch.cuda.synchronize()  # a fault belongs to the case that caused it
    library = case.operator == "conv2d" and case.config is None  # groups: torch's convolution, then our epilogue
    allowed = tolerance_of(TORCH_DTYPE[case.dtype], precision) * (ROUNDED_TWICE if library else 1)
    return {"error": largest, "tolerance": allowed}


def multiply_as(dtype: str) -> None:
    """Let torch, and with it the kernels, multiply float32 in TF32 where ``dtype`` is "tf32", and in full elsewhere."""
    precision = "tf32" if dtype == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]


def _grouped(case: ValueCase) -> bool:
    return case.groups == case.x[1]  # depthwise: multiply-adds in float32, no tensor cores


def operands_of(case: ValueCase, device: str) -> dict[str, Tensor | None]:
    """Random operands of unit variance, laid out as the kernels read them; about a fifth of the outputs saturate."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = TORCH_DTYPE[case.dtype]

    def draw(shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, device=device)).to(dtype)

    x = draw(case.x)
    layout = torch.channels_last if len(case.x) == 4 and not case.nchw else torch.contiguous_format
    x = x.contiguous(memory_format=layout)
    out: tuple[int, ...] = case.x
    weight = None
    if case.weight:
        weight = draw(case.weight, torch.Size(case.weight[1:]).numel() ** -0.5)
        out = (*case.x[:-1], case.weight[0])
    if case.operator == "conv2d":
        weight = pack_weight(weight, case.groups) if weight is not None else None
        sizes = (case.x[2:], case.weight[2:], case.stride, case.padding, case.dilation)
        out = (case.x[0], case.weight[0], *(conv_size(*axis) for axis in zip(*sizes, strict=True)))
    sample = out[1:] if case.operator != "max_pool2d" else case.x[1:]
    channel = (sample[0], 1, 1) if len(sample) == 3 else sample[-1:]
    bounds = {"none": None, "tensor": (), "channel": channel, "neuron": sample}
    bound_shape = bounds[case.bound]
    bias_shape = channel if case.operator == "epilogue" else channel[:1]
    return {
        "x": x,
        "weight": weight,
        "bias": draw(bias_shape) if case.bias else None,
        "residual": draw(out).contiguous(memory_format=layout) if case.residual else None,
        "bound": None if bound_shape is None else pack_bound(draw(bound_shape).abs() + 0.3),
    }


def launched(case: ValueCase, operands: dict[str, Tensor | None]) -> list[Tensor]:
    """What the kernel gives; where it counts also, for each sample, 1 where the count is right."""
    x, bound = operands["x"], operands["bound"]
    assert x is not None, "every case has an input"
    if case.operator == "clamp_bound_backward":
        assert bound is not None, "the backward is that of a bound"
        dx, of_bound = backward.clamp_bound_backward(_gradient(x), x, bound)
        return [dx, of_bound / _summed(x, bound) ** 0.5]
    if case.operator == "max_pool2d":
        return [pooling.max_pool2d(x, operands["bias"], bound, *_pooling(case))]
    launch, _ = _functions(case)
    if case.fault == "short sum":
        operands = {**operands, "x": torch.cat([x[..., :-16], torch.zeros_like(x[..., -16:])], dim=-1)}
    if not case.counts:
        return [launch(*operands.values(), counts=None)]
    counts = torch.zeros(case.x[0], dtype=torch.int32, device=x.device)
    clamped = launch(*operands.values(), counts=counts)
    unclamped = launch(*{**operands, "bound": None}.values(), counts=None)
    return [clamped, (counts == (unclamped > bound).flatten(1).sum(1)).double()]  # exactly


def _truth(case: ValueCase, operands: dict[str, Tensor | None]) -> list[Tensor]:
    """What is right, in float64."""
    x, bound = operands["x"], operands["bound"]
    assert x is not None, "every case has an input"
    exact = {name: None if operand is None else operand.double() for name, operand in operands.items()}
    if case.operator == "clamp_bound_backward":
        assert bound is not None, "the backward is that of a bound"
        inputs = [operand.requires_grad_() for operand in (exact["x"], exact["bound"]) if operand is not None]
        dx, of_bound = torch.autograd.grad(reference.clamp_bound_ref(*inputs), inputs, _gradient(x).double())
        return [dx, of_bound / _summed(x, bound) ** 0.5]
    if case.operator == "max_pool2d":
        return [reference.max_pool2d_ref(x.double(), exact["bias"], exact["bound"], *_pooling(case))]
    _, of_reference = _functions(case)
    right = [of_reference(*exact.values())]
    return [*right, torch.ones(case.x[0], dtype=torch.float64, device=x.device)] if case.counts else right


def _gradient(x: Tensor) -> Tensor:
    grad = torch.randn(x.shape, generator=torch.Generator(x.device).manual_seed(1), device=x.device).to(x)
    return grad.contiguous(memory_format=reference.memory_format_of(x))


def _summed(x: Tensor, bound: Tensor) -> int:
    """How many values a bound's gradient is the sum of, which its root scales to unit variance."""
    return x.numel() // max(bound.numel(), 1)


def _pooling(case: ValueCase) -> tuple[Any, ...]:
    return case.weight[2:], case.stride, case.padding, case.dilation, False, case.act


def _functions(case: ValueCase) -> tuple[Any, Any]:
    """The launcher and the reference, as functions of the operands."""
    launchers: dict[str, tuple[Any, Any]] = {
        "epilogue": (pointwise.epilogue, reference.epilogue_ref),  # it has a scale where the products have a weight
        "linear": (linear.linear, reference.linear_ref),
        "conv2d": (conv2d.conv2d, reference.conv2d_ref),
    }
    launcher, of_reference = launchers[case.operator]
    geometry = (case.stride, case.padding, case.dilation, case.groups) if case.operator == "conv2d" else ()
    options = (*geometry, case.act)
    return (
        lambda *tensors, counts: launcher(*tensors, *options, counts=counts, config=case.config),
        lambda *tensors: of_reference(*tensors, *options),
    )
