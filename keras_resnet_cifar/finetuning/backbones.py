"""Backbones that come with ImageNet weights: one table.

Plain data without heavy imports: help texts, errors, `pretrained.py` and the
tests read it.
"""

from dataclasses import dataclass

# What stays frozen when a net is fine-tuned; a stage stands for the stem and
# all stages up to it, "all" for the whole backbone.
FREEZE = ("all", "stage4", "stage3", "stage2", "stage1", "none")
IMAGE_SIZE = 224


@dataclass(frozen=True)
class Backbone:
    """A ResNet with published ImageNet weights.

    Attributes:
        name: What `--backbone` calls it.
        application: Its function in `keras.applications`, or `None`.
        arch: The same net for PyTorch checkpoints, a name of
            `architectures.py`, or `None`.
        preprocessing: What the published weights want, see
            `normalization.preprocess_input`; PyTorch's always want `"torch"`.
        file: The file of the published weights.
        preset: The same net in KerasHub, converted from timm, or `None`.
    """

    name: str
    application: str | None
    arch: str | None
    preprocessing: str
    file: str
    preset: str | None = None


def _torchvision(name, digest, preset=None):
    file = f"{name}-{digest}.pth"
    return Backbone(name, None, f"{name}-imagenet", "torch", file, preset)


def _application(name, function, preprocessing, arch=None, preset=None):
    file = f"{name}_weights_tf_dim_ordering_tf_kernels_notop.h5"
    return Backbone(name, function, arch, preprocessing, file, preset)


def _v1(name, function, preset):
    return _application(name, function, "caffe", f"{name}-imagenet", preset)


BACKBONES = {
    backbone.name: backbone
    for backbone in (
        _torchvision("resnet18", "f37072fd", "resnet_18_imagenet"),
        _torchvision("resnet34", "b627a593"),
        _v1("resnet50", "ResNet50", "resnet_50_imagenet"),
        _v1("resnet101", "ResNet101", "resnet_101_imagenet"),
        _v1("resnet152", "ResNet152", "resnet_152_imagenet"),
        _application("resnet50v2", "ResNet50V2", "tf"),
        _application("resnet101v2", "ResNet101V2", "tf"),
        _application("resnet152v2", "ResNet152V2", "tf"),
    )
}
