"""The table of backbones that come with ImageNet weights."""

import os
from dataclasses import dataclass
from pathlib import Path

from keras_resnet_cifar.errors import InputError, spelled, unknown
from keras_resnet_cifar.finetuning.phases import newest_run
from keras_resnet_cifar.models import architectures
from keras_resnet_cifar.models.weights import find_weights

# What stays frozen in fine-tuning: the whole backbone, the stem and the stages
# up to the named one, or nothing.
FREEZE = ("all", "stage4", "stage3", "stage2", "stage1", "none")
IMAGE_SIZE = 224  # side in pixels of the images that they were trained on


@dataclass(frozen=True)
class Backbone:
    """A ResNet with published ImageNet weights.

    Attributes:
        preprocessing: The mode of `normalization.preprocess_input` that the
            published weights expect; PyTorch weights always expect `"torch"`.
        file: File name of the published weights.
        sha256: Digest of a torchvision file; Keras checks its own files.
        application, arch, preset: The same net in `keras.applications`,
            `models.architectures` and KerasHub (converted from timm), or
            `None`.
    """

    name: str
    preprocessing: str
    file: str
    sha256: str | None = None
    application: str | None = None
    arch: str | None = None
    preset: str | None = None


def _torchvision(name, sha256, preset=None):
    file = f"{name}-{sha256[:8]}.pth"  # torchvision names its files so
    arch = f"{name}-imagenet"
    return Backbone(name, "torch", file, sha256, None, arch, preset)


def _keras(function, preprocessing, depth=None):
    name = function.lower()
    file = f"{name}_weights_tf_dim_ordering_tf_kernels_notop.h5"
    arch = depth and f"resnet{depth}-imagenet"
    preset = depth and f"resnet_{depth}_imagenet"
    return Backbone(name, preprocessing, file, None, function, arch, preset)


BACKBONES = {
    row.name: row
    for row in (
        _torchvision(
            "resnet18",
            "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
            "resnet_18_imagenet",
        ),
        _torchvision(
            "resnet34",
            "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f",
        ),
        _keras("ResNet50", "caffe", 50),
        _keras("ResNet101", "caffe", 101),
        _keras("ResNet152", "caffe", 152),
        _keras("ResNet50V2", "tf"),
        _keras("ResNet101V2", "tf"),
        _keras("ResNet152V2", "tf"),
    )
}
"""The backbones with ImageNet weights by name."""


def found_backbone(name: str | Path) -> str:
    """Returns a name as `BACKBONES` spells it; for a run, its last.keras."""
    name = str(spelled(name, BACKBONES))
    run = newest_run(Path(name))
    known = name in BACKBONES or not run.config.is_file()
    return name if known else str(run.last)


def check_backbone(name: str | Path, weights: str | Path) -> None:
    """Raises `InputError` for an unknown backbone, or weights it does not have.

    The arguments are those of `build_finetuned`. For a name of `BACKBONES` or a
    file, the weights are not checked here.
    """
    name = found_backbone(name)
    if name in BACKBONES or str(name).endswith(".keras"):
        return
    if os.sep in str(name) and not Path(name).exists():
        raise InputError(f"backbone={name} does not exist: check the path")
    if weights in ("imagenet", "none", "hub"):
        if str(name) in architectures.ARCHITECTURES:
            raise InputError(
                f"backbone={name} has no ImageNet weights: give weights=, such "
                "as weights=cifar10"
            )
        others = [
            "a run",
            "a .keras file",
            "with weights= a net such as resnet20",
        ]
        raise unknown("backbone", name, [*BACKBONES, *others])
    find_weights(weights, architectures.resolve(str(name)).name)
