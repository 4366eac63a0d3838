"""What an export hands back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table


@dataclass(frozen=True)
class SiteReport:
    """How one site was clamped.

    Attributes:
        site: name of the site.
        form: "clip", "min", …; in int8 "scale" where the quantiser saturates at the bound and "integer min" where a
            Min clamps the integers; "none" where the bound is +inf.
        reason: why that form.
        bound_shape: shape of the stored bound; () for one number a site.
        reached: whether a verification input drove the activation above its bound; None when not verified.
    """

    site: str
    form: str
    reason: str
    bound_shape: tuple[int, ...]
    reached: bool | None


@dataclass(frozen=True)
class ParityCheck:
    """One comparison of the file in a runtime with the sanitised graph in torch.

    Attributes:
        inputs: "ordinary", "×10" or "×100".
        batch: number of samples.
        optimized: whether the runtime's graph optimisation was on; OpenVINO's always is.
        max_abs: largest absolute difference of an output or a site.
        max_rel: largest difference relative to the largest magnitude of the tensor it is in.
        agreement: share of samples whose argmax agrees, in [0, 1]; 1 where outputs have no classes.
        runtime: "onnxruntime" or "openvino".
        output_rel: ``max_rel`` of the outputs alone. Single activations inside may differ by more.
    """

    inputs: str
    batch: int
    optimized: bool
    max_abs: float
    max_rel: float
    agreement: float
    runtime: str = "onnxruntime"
    output_rel: float = 0.0


@dataclass(frozen=True)
class ParityResult:
    """Agreement of the file with the sanitised graph.

    Attributes:
        runtime: names and versions of what ran the file.
        tolerance: the largest ``max_rel`` that passes, unless torch rounds by more at that precision.
        checks: one comparison each.
        skipped: inputs that are not compared, since they overflow, or cancel beyond what float16 can carry.
    """

    runtime: str
    tolerance: float
    checks: tuple[ParityCheck, ...]
    skipped: tuple[str, ...]

    @property
    def max_abs(self) -> float:
        """Largest absolute difference of all checks."""
        return max(check.max_abs for check in self.checks)

    @property
    def max_rel(self) -> float:
        """Largest relative difference of all checks."""
        return max(check.max_rel for check in self.checks)

    @property
    def output_rel(self) -> float:
        """Largest relative difference of the outputs."""
        return max(check.output_rel for check in self.checks)

    @property
    def agreement(self) -> float:
        """Smallest argmax agreement of all checks, in [0, 1]."""
        return min(check.agreement for check in self.checks)

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes compared."""
        return tuple(sorted({check.batch for check in self.checks}))

    def summary(self) -> str:
        """One line; what the file's metadata says."""
        batches = ", ".join(map(str, self.batches))
        return (
            f"{self.runtime}, optimised and not, batches {batches}, inputs ×1 to ×100: relative error at most "
            f"{self.max_rel:.1e}, of outputs {self.output_rel:.1e} (limit {self.tolerance:g} or four times what torch "
            f"rounds by), argmax agreement "
            f"{self.agreement:.4f}"
        )


@dataclass(frozen=True)
class Int8Accuracy:
    """The int8 file against the float32 one, both in ONNX Runtime, on the calibration data.

    Attributes:
        samples: how many there were.
        agreement: share of them with the same largest class, in [0, 1]; None for models that give no classes.
        changed: share of them whose class changed although it led in float32 by more than a tie.
        limit: the largest ``changed`` that passes.
        accuracy_before: of float32, in [0, 1]; None without labels or classes.
        accuracy_after: of int8.
        signal_to_noise: variance between samples over mean square error, in dB, of the output that has the least.
    """

    samples: int
    agreement: float | None
    changed: float | None
    limit: float
    accuracy_before: float | None
    accuracy_after: float | None
    signal_to_noise: float

    def summary(self) -> str:
        """One line; what the file's metadata says."""
        parts = [f"{self.samples} calibration samples", f"signal to noise {self.signal_to_noise:.1f} dB"]
        if self.agreement is not None and self.changed is not None:
            parts.append(
                f"argmax agreement with float32 {self.agreement:.4f} ({self.changed:.2%} changed that were no ties, "
                f"limit {self.limit:.0%})"
            )
        if self.accuracy_before is not None and self.accuracy_after is not None:
            parts.append(f"accuracy {self.accuracy_before:.4f} in float32, {self.accuracy_after:.4f} in int8")
        return ", ".join(parts)


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it was verified.

    Attributes:
        path: the file.
        opset: of ONNX.
        form: the form asked for.
        precision: of weights and activations.
        sites: one entry a site, in the order in which they run.
        size: bytes of the file and of its external data, if any.
        external_data: the file beside it that holds the tensors of a model above 2 GB.
        parity: None when verification was turned off. In int8 it is that of the float32 graph before quantising.
        accuracy: what int8 costs; None at other precisions.
        sha256: of the file.
        seconds: the export took.
        thresholds: of the excess, by share of false alarms; None where the file does not measure it.
    """

    path: Path
    opset: int
    form: str
    precision: str
    sites: tuple[SiteReport, ...]
    size: int
    external_data: Path | None
    parity: ParityResult | None
    sha256: str
    seconds: float
    accuracy: Int8Accuracy | None = None
    thresholds: Mapping[float, float] | None = None

    @property
    def forms(self) -> dict[str, str]:
        """Form by site."""
        return {site.site: site.form for site in self.sites}

    def to_dict(self) -> dict[str, Any]:
        """All of it in types that JSON knows."""
        data = asdict(self)
        data["path"] = str(self.path)
        data["external_data"] = str(self.external_data) if self.external_data else None
        if self.parity is not None:
            data["parity"] |= {
                "max_abs": self.parity.max_abs,
                "max_rel": self.parity.max_rel,
                "output_rel": self.parity.output_rel,
                "agreement": self.parity.agreement,
            }
        return data

    def __rich__(self) -> RenderableType:
        title = f"{self.path} · opset {self.opset} · {self.precision} · {self.size / 1e6:.2f} MB · {self.seconds:.1f} s"
        sites = Table(title=title)
        for heading in ("site", "bound", "form", "why", "bound reached"):
            sites.add_column(heading, overflow="fold")
        reached = {True: "yes", False: "no", None: "–"}
        for site in self.sites:
            shape = "×".join(map(str, site.bound_shape)) or "scalar"
            sites.add_row(site.site, shape, site.form, site.reason, reached[site.reached])
        notes = [f"int8: {self.accuracy.summary()}"] if self.accuracy else []
        if self.thresholds is not None:
            shown = ", ".join(f"{found:.3g} ({fpr:.1%})" for fpr, found in self.thresholds.items())
            notes.append(f"output excess: thresholds, and false alarms there: {shown or 'too few clean samples'}")
        if self.parity is None:
            return Group(sites, *notes, "[bold]not verified[/bold]: verify=False")
        parity = Table(title=f"torch against {self.parity.runtime}")
        for heading in ("batch", "max abs error", "max rel error", "argmax agreement"):
            parity.add_column(heading, justify="right")
        for batch in self.parity.batches:
            checks = [check for check in self.parity.checks if check.batch == batch]
            parity.add_row(
                str(batch),
                f"{max(check.max_abs for check in checks):.2g}",
                f"{max(check.max_rel for check in checks):.2g}",
                f"{min(check.agreement for check in checks):.4f}",
            )
        return Group(sites, *notes, parity)


@dataclass(frozen=True)
class OptimizedFile:
    """What :func:`optimize_onnx` wrote.

    Attributes:
        path: the file.
        made_for: the ONNX Runtime and the kind of processor that it is for, and for no others.
        clamps: nodes that clamp maps by a bound per neuron.
        in_blocks: how many of these run in the layout of the convolutions around them.
        error: the largest difference of an output from the original file's, relative to its largest magnitude; None
            where it was not looked at.
    """

    path: Path
    made_for: str
    clamps: int
    in_blocks: int
    error: float | None

    def summary(self) -> str:
        """One line."""
        checked = "not verified" if self.error is None else f"relative error at most {self.error:.1e}"
        gained = (
            f"{self.in_blocks} of {self.clamps} clamps per neuron" if self.clamps else "no clamp per neuron to have"
        )
        return f"{self.path}: for {self.made_for} alone, {gained} in its layout, {checked}"
