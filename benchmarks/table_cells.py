"""What several tables write alike."""

from typing import Any

NETWORKS = {
    "resnet18_32": "ResNet-18, 32²",
    "resnet20_32": "ResNet-20, 32²",
    "vgg_32": "VGG (ELU), 32²",
    "densenet_32": "DenseNet, 32²",
    "vit_32": "ViT (GELU), 32²",
    "mobilenet_v2_32": "MobileNetV2, trained, 32²",
    "mobilenet_v2": "MobileNetV2, 224²",
    "efficientnet_lite0": "EfficientNet-Lite0, real weights, 224²",
}
"""The networks that results name, as tables call them."""


def spread(timing: dict[str, Any], unit: str = "_ms", digits: int = 2) -> str:
    """The median, and in brackets the 20th and 80th percentile: of ``median_ms``, ``p20_ms`` and ``p80_ms``.

    Args:
        timing: a row of results.
        unit: how the names of the figures end there.
        digits: after the point.
    """
    median, low, high = (f"{timing[f'{name}{unit}']:,.{digits}f}" for name in ("median", "p20", "p80"))
    return f"{median} ({low} to {high})"
