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
    """

    name: str
    application: str | None
    arch: str | None
    preprocessing: str
    file: str

    @property
    def source(self):
        return "keras.applications" if self.application else "torchvision"


def _application(name, function, arch, preprocessing):
    file = f"{name}_weights_tf_dim_ordering_tf_kernels_notop.h5"
    return Backbone(name, function, arch, preprocessing, file)


BACKBONES = {
    backbone.name: backbone
    for backbone in (
        Backbone(
            "resnet18",
            None,
            "resnet18-imagenet",
            "torch",
            "resnet18-f37072fd.pth",
        ),
        Backbone(
            "resnet34",
            None,
            "resnet34-imagenet",
            "torch",
            "resnet34-b627a593.pth",
        ),
        _application("resnet50", "ResNet50", "resnet50-imagenet", "caffe"),
        _application("resnet101", "ResNet101", "resnet101-imagenet", "caffe"),
        _application("resnet152", "ResNet152", "resnet152-imagenet", "caffe"),
        _application("resnet50v2", "ResNet50V2", None, "tf"),
        _application("resnet101v2", "ResNet101V2", None, "tf"),
        _application("resnet152v2", "ResNet152V2", None, "tf"),
    )
}
