"""The networks that ``benchmarks.zoo`` tries, with two samples each: many kinds of torchvision, timm, transformers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.models import import_torchvision_models, settle
from unit_fast.capture import Example

Made = tuple[nn.Module, Example]
SAMPLES = 2

# By name the shape of a sample. Left out are detectors, which take no batches, and of video MViT, Swin and S3D. S3D was
# tried: its samples of 16 frames of 224×224 took more than 24 GiB of memory.
TORCHVISION = {
    **dict.fromkeys(
        (
            *("alexnet", "vgg11", "vgg11_bn", "googlenet", "squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v2"),
            *("mobilenet_v3_small", "mnasnet0_5", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf"),
            *("regnet_y_400mf", "resnet18", "resnext50_32x4d", "densenet121", "convnext_tiny", "vit_b_32", "swin_t"),
            *("swin_v2_t", "maxvit_t", "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50"),
        ),
        (3, 224, 224),
    ),
    "inception_v3": (3, 299, 299),
    **dict.fromkeys(("r3d_18", "mc3_18", "r2plus1d_18"), (3, 8, 64, 64)),
}

# Of every module of timm 1.0.31 with classifiers for images of at most 288 pixels a side one of the smallest, by its
# parameters times the size of its images; those whose names begin with test_ left out.
TIMM = (
    *("beit_base_patch16_224", "halonet_h1", "mobileone_s1", "cait_xxs24_224", "coat_tiny", "convit_tiny"),
    *("convmixer_768_32", "convnext_zepto_rms", "cpubone_nano", "crossvit_tiny_240", "cs3darknet_focus_s"),
    *("cspnext_tiny", "davit_tiny", "deit_tiny_patch16_224", "densenet121", "dla46x_c", "dpn48b", "edgenext_xx_small"),
    *("efficientformer_l1", "efficientformerv2_s0", "tinynet_e", "efficientvim_m1", "efficientvit_b0"),
    *("efficientvit_m0", "vit_small_patch16_rope_224", "fasternet_t0", "fastvit_t8", "focalnet_tiny_srf"),
    *("gcvit_xxtiny", "ghostnet_050", "hardcorenas_b", "hgnetv2_b0", "hiera_tiny_224", "hieradet_small"),
    *("hrnet_w18_small", "iformer_t", "inception_next_atto", "lcnetv2_small", "levit_conv_128s", "lowformer_b0"),
    *("mambaout_femto", "maxvit_pico_rw_256", "poolformerv2_s12", "gmlp_ti16_224", "mobilenetv3_small_050"),
    *("mobilenetv5_base", "mobilevit_xxs", "mvitv2_tiny", "nest_tiny", "nextvit_small", "nf_regnet_b0", "pit_ti_224"),
    *("pvt_v2_b0", "rdnet_tiny", "regnetx_002", "repghostnet_050", "repvit_m1", "res2next50", "resnest14d"),
    *("resnet10t", "resnetv2_18", "rexnet_100", "selecsls42", "legacy_seresnet18", "sequencer2d_s", "shvit_s1"),
    *("skresnet18", "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"),
    *("swinv2_cr_tiny_224", "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m", "twins_svt_small"),
    *("vgg11_bn", "visformer_tiny", "vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224", "vit_srelpos_small_patch16_224"),
    *("samvit_base_patch16_224", "vitamin_small_224", "volo_d1_224", "ese_vovnet19b_slim_dw", "xcit_nano_12_p8_224"),
)

_TRANSFORMER = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192}
_VISION = _TRANSFORMER | {"image_size": 64, "patch_size": 8}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {  # what is classified, and the configuration
    "ViT": ("Image", _VISION),
    "DeiT": ("Image", _VISION),
    "Beit": ("Image", _VISION),
    "Dinov2": ("Image", _VISION | {"mlp_ratio": 2}),
    "Swin": ("Image", {"image_size": 64, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}),
    "Swinv2": ("Image", {"image_size": 64, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}),
    "ConvNext": ("Image", {"hidden_sizes": [24, 48, 96, 192], "depths": [1, 1, 1, 1]}),
    "ConvNextV2": ("Image", {"hidden_sizes": [24, 48, 96, 192], "depths": [1, 1, 1, 1]}),
    "ResNet": ("Image", {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1], "embedding_size": 32}),
    "RegNet": ("Image", {"hidden_sizes": [64, 128, 192, 256], "depths": [1, 1, 1, 1], "groups_width": 32}),
    "MobileNetV1": ("Image", {"depth_multiplier": 0.25}),
    "MobileNetV2": ("Image", {"depth_multiplier": 0.35}),
    "MobileViT": ("Image", {"image_size": 64, "hidden_sizes": [48, 64, 80], "neck_hidden_sizes": [16] * 4 + [64] * 3}),
    "Segformer": ("Image", {"hidden_sizes": [16, 32, 64, 96], "depths": [1, 1, 1, 1]}),
    "PoolFormer": ("Image", {"hidden_sizes": [16, 32, 64, 96], "depths": [1, 1, 1, 1]}),
    "FocalNet": ("Image", {"image_size": 64, "embed_dim": 24, "depths": [1, 1], "focal_levels": [2, 2]}),
    "Bert": ("Sequence", _TRANSFORMER | {"vocab_size": 500}),
    "DistilBert": ("Sequence", {"dim": 96, "n_layers": 2, "n_heads": 4, "hidden_dim": 192, "vocab_size": 500}),
    "Roberta": ("Sequence", _TRANSFORMER | {"vocab_size": 500}),
    "Albert": ("Sequence", _TRANSFORMER | {"vocab_size": 500, "embedding_size": 48}),
    "AST": ("Audio", _TRANSFORMER | {"max_length": 64, "num_mel_bins": 32, "patch_size": 8}),
}
TOKENS = 32

NETWORKS = (
    *(f"torchvision:{name}" for name in TORCHVISION),
    *(f"timm:{name}" for name in TIMM),
    *(f"transformers:{name}" for name in TRANSFORMERS),
)


def make(name: str) -> Made:
    """A network with random weights in evaluation mode, and samples for it; ``name`` is one of ``NETWORKS``."""
    import_torchvision_models()  # which the others import too
    torch.manual_seed(0)
    source, _, what = name.partition(":")
    return _SOURCES[source](what)


def _torchvision(name: str) -> Made:
    models: Any = import_torchvision_models()
    sizes: dict[str, Any] = {"weights_backbone": None} if name.startswith(("fcn", "deeplab", "lraspp")) else {}
    model = models.get_model(name, weights=None, **sizes)
    return settle(model, torch.randn(SAMPLES, *TORCHVISION[name]))


def _timm(name: str) -> Made:
    import timm

    model = timm.create_model(name)
    return settle(model, torch.randn(SAMPLES, *model.default_cfg["input_size"]))


def _transformers(name: str) -> Made:
    import transformers

    task, settings = TRANSFORMERS[name]
    config = getattr(transformers, f"{name}Config")(**settings, num_labels=10)
    model = getattr(transformers, f"{name}For{task}Classification")(config)
    if task == "Sequence":
        ids = torch.randint(5, 500, (SAMPLES, TOKENS))
        return model.eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if task == "Audio":
        return model.eval(), {"input_values": torch.randn(SAMPLES, config.max_length, config.num_mel_bins)}
    side = getattr(config, "image_size", 64)
    model, images = settle(model, torch.randn(SAMPLES, 3, side, side))
    return model, {"pixel_values": images}


_SOURCES: dict[str, Callable[[str], Made]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
}
