"""The options that several commands share, said once, so that they mean the same everywhere."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer


class DType(StrEnum):
    """What weights, bounds and activations are computed in; torch's names."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Granularity(StrEnum):
    """What one bound is for."""

    NEURON = "neuron"
    CHANNEL = "channel"
    TENSOR = "tensor"


_MODEL = "The model"
_DATA = "The data"
_SCREEN = "What is printed"

Model: TypeAlias = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A torch.export archive (.pt2), timm:NAME, or package.module:factory, importable from here.",
        metavar="MODEL",
        rich_help_panel=_MODEL,
    ),
]
Weights: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Weights for the model: .safetensors, or a checkpoint of plain tensors (.pth, .pt).",
        metavar="FILE",
        rich_help_panel=_MODEL,
    ),
]
ModelArgs: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Arguments of the factory or of timm as JSON, such as '{\"num_classes\": 43}'.",
        metavar="JSON",
        rich_help_panel=_MODEL,
    ),
]
Device: TypeAlias = Annotated[
    str, typer.Option(help="auto, cpu, cuda or cuda:N; auto takes CUDA where there is one.", rich_help_panel=_MODEL)
]
DTypeOption: TypeAlias = Annotated[
    DType | None,
    typer.Option("--dtype", help="Run the sanitised model in this; its own when omitted.", rich_help_panel=_MODEL),
]
Data: TypeAlias = Annotated[
    Path,
    typer.Option(
        help="A folder with one folder of images a class, or an .npz file with x and y.",
        metavar="PATH",
        rich_help_panel=_DATA,
    ),
]
OptionalData: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="As for calibrate; one batch of it tells the model's input.", metavar="PATH", rich_help_panel=_DATA
    ),
]
InputShape: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Without --data: the shape of one input, such as 3x32x32.", metavar="CxHxW", rich_help_panel=_DATA
    ),
]
Size: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Resize images to this: 224, or 480x640 (height x width).", rich_help_panel=_DATA),
]
Mean: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="What the model wants subtracted from pixels in [0, 1], one number or one a channel: 0.485,0.456,0.406.",
        metavar="NUMBERS",
        rich_help_panel=_DATA,
    ),
]
Std: TypeAlias = Annotated[
    str | None,
    typer.Option(help="What the model wants them then divided by.", metavar="NUMBERS", rich_help_panel=_DATA),
]
BatchSize: TypeAlias = Annotated[int, typer.Option(min=1, help="Images at a time.", rich_help_panel=_DATA)]
BoundsFile: TypeAlias = Annotated[
    Path, typer.Option("--bounds", "-b", help="The bounds file that calibrate wrote.", metavar="FILE")
]
OptionalBoundsFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--bounds", "-b", help="Measure the model with these bounds, beside the model itself.", metavar="FILE"
    ),
]
Json: TypeAlias = Annotated[
    bool,
    typer.Option("--json", help="One JSON object on standard output, nothing else there.", rich_help_panel=_SCREEN),
]
Quiet: TypeAlias = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but errors (and JSON).", rich_help_panel=_SCREEN)
]
Verbose: TypeAlias = Annotated[
    bool,
    typer.Option("--verbose", help="Show tracebacks and the libraries' warnings.", rich_help_panel=_SCREEN),
]
