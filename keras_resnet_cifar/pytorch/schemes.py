"""A table of how PyTorch projects name the modules of a ResNet.

A scheme maps our layers (`stage2_block0_conv1`) to modules (`layer2.0.conv1`)
and back. It contains no shapes and needs no framework.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from keras_resnet_cifar.errors import InputError, check_name

_LAYERS = ("layer1", "layer2", "layer3", "layer4")

# Number of classes -> normalization in the projects' own training code.
Normalizations = dict[int | None, Any]
_CIFAR: Normalizations = {
    10: ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    20: "cifar100-coarse",
    100: "cifar100",
}
_CHENYAOFO_100 = ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))
_WEIAICUNZAI_100 = (
    (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
    (0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
)


@dataclass(frozen=True)
class Scheme:
    """The names of one project's modules.

    Attributes:
        source: The project, and which of its nets.
        stages: The module of each stage; a net has as many stages.
        block: Prefix of the number of a block in its stage.
        stem, shortcut: Their convolution and BatchNorm.
        convs, norms: The convolutions and BatchNorms of a block, in order.
        normalization: Normalization of the project's training, by the number of
            classes; the key `None` stands for any other number.
        identity: Whether a shortcut may have no tensors (option A).
        preactivation: Whether the nets are pre-activation nets, without
            BatchNorm in the stem, in shortcuts and before the pooling.
        stems: The kinds of stem that the nets have.
    """

    source: str
    stages: tuple[str, ...] = _LAYERS
    block: str = ""
    first_block: int = 0
    stem: tuple[str, str] = ("conv1", "bn1")
    convs: tuple[str, ...] = ("conv1", "conv2", "conv3")
    norms: tuple[str, ...] = ("bn1", "bn2", "bn3")
    shortcut: tuple[str, str] = ("shortcut.0", "shortcut.1")
    head: str = "linear"
    normalization: Normalizations = field(default_factory=lambda: _CIFAR)
    identity: bool = False
    preactivation: bool = False
    stems: tuple[str, ...] = ("cifar",)

    @property
    def name(self) -> str:
        return next(name for name, row in SCHEMES.items() if row is self)

    @cached_property
    def _modules(self) -> dict[str, str]:
        """`{layer: module}`, with `#` for the number of a block."""
        modules = {"stem_conv": self.stem[0], "head_dense": self.head}
        parts = {f"conv{i}": name for i, name in enumerate(self.convs, start=1)}
        parts |= {f"bn{i}": name for i, name in enumerate(self.norms, start=1)}
        parts["shortcut_conv"] = self.shortcut[0]
        if not self.preactivation:
            modules["stem_bn"] = self.stem[1]
            parts["shortcut_bn"] = self.shortcut[1]
        for number, stage in enumerate(self.stages, start=1):
            for part, module in parts.items():
                layer = f"stage{number}_block#_{part}"
                modules[layer] = f"{stage}.{self.block}#.{module}"
        return modules

    @cached_property
    def _layers(self) -> dict[str, str]:
        return {module: layer for layer, module in self._modules.items()}

    def module(self, layer: str) -> str | None:
        """Returns the module of one of our layers, `None` if it has none."""
        return _look_up(self._modules, r"_block(\d+)_", layer, self.first_block)

    def layer(self, module: str) -> str | None:
        """Returns our layer of a module, `None` if there is none."""
        number = rf"\.{self.block}(0|[1-9]\d*)\."
        return _look_up(self._layers, number, module, -self.first_block)

    @property
    def essential(self) -> list[str]:
        """The layers that each net of this scheme has."""
        return [
            layer.replace("#", "0")
            for layer in self._modules
            if "#" not in layer or layer.endswith("_conv1")
        ]

    def default_normalization(self, stem: str, num_classes: int) -> Any:
        """Returns the normalization that the scheme's nets were trained with.

        It is ImageNet's for akamaster's nets and those with the ImageNet stem,
        else the project's own for the CIFAR dataset with `num_classes` classes.
        Raises `InputError` if the project has no such dataset.
        """
        if stem == "imagenet":
            return "imagenet"
        for key in (num_classes, None):
            if key in self.normalization:
                return self.normalization[key]
        raise InputError(
            f"the scheme {self.name} has no normalization for {num_classes} "
            "classes: give the one that the net was trained with, e.g. "
            "normalization='cifar10'"
        )


def _look_up(
    table: dict[str, str], pattern: str, name: str, shift: int
) -> str | None:
    """Looks a name up in a table that has `#` where `pattern` has a number.

    The number in the result is `shift` more than that in `name`.
    """
    match = re.search(pattern, name)
    if match is None:
        return None if "#" in name else table.get(name)
    start, end = match.span(1)
    other = table.get(f"{name[:start]}#{name[end:]}")
    number = int(match[1]) + shift
    return other and other.replace("#", str(number)) if number >= 0 else None


SCHEMES = {
    "akamaster": Scheme(
        "akamaster/pytorch_resnet_cifar10: three stages, option A or B",
        stages=_LAYERS[:3],
        normalization={None: "imagenet"},
        identity=True,
    ),
    "chenyaofo": Scheme(
        "chenyaofo/pytorch-cifar-models: three stages",
        stages=_LAYERS[:3],
        shortcut=("downsample.0", "downsample.1"),
        head="fc",
        normalization=_CIFAR | {100: _CHENYAOFO_100},
    ),
    "imgclsmob": Scheme(
        "osmr/imgclsmob (pytorchcv), CIFARResNet: three stages",
        stages=tuple(f"features.stage{i}" for i in (1, 2, 3)),
        block="unit",
        first_block=1,
        stem=("features.init_block.conv", "features.init_block.bn"),
        convs=tuple(f"body.conv{i}.conv" for i in (1, 2, 3)),
        norms=tuple(f"body.conv{i}.bn" for i in (1, 2, 3)),
        shortcut=("identity_conv.conv", "identity_conv.bn"),
        head="output",
        # Its CIFAR-100 dataset inherits the statistics of CIFAR-10.
        normalization=_CIFAR | {100: _CIFAR[10]},
    ),
    "kuangliu": Scheme("kuangliu/pytorch-cifar, ResNet: four stages"),
    "kuangliu-preact": Scheme(
        "kuangliu/pytorch-cifar, PreActResNet: four stages", preactivation=True
    ),
    "weiaicunzai": Scheme(
        "weiaicunzai/pytorch-cifar100, ResNet: four stages",
        stages=("conv2_x", "conv3_x", "conv4_x", "conv5_x"),
        stem=("conv1.0", "conv1.1"),
        convs=tuple(f"residual_function.{i}" for i in (0, 3, 6)),
        norms=tuple(f"residual_function.{i}" for i in (1, 4, 7)),
        head="fc",
        normalization=_CIFAR | {100: _WEIAICUNZAI_100},
    ),
    "torchvision": Scheme(
        "torchvision and timm ResNets: four stages, either stem",
        shortcut=("downsample.0", "downsample.1"),
        head="fc",
        stems=("cifar", "imagenet"),
    ),
}


def get_scheme(name: str) -> Scheme:
    """Returns a `Scheme` by name; raises `InputError` if there is none."""
    check_name("scheme", name, SCHEMES)
    return SCHEMES[name]


def recognize(modules: Collection[str]) -> Scheme | None:
    """Returns the scheme that best fits the names of modules with tensors.

    It is `None` if, for every scheme, half of the modules or more are unknown
    or missing.
    """
    best, fewest = None, len(modules) / 2
    for scheme in SCHEMES.values():
        layers = [scheme.layer(module) for module in modules]
        wrong = layers.count(None) + len({*scheme.essential} - {*layers})
        if wrong < fewest:
            best, fewest = scheme, wrong
    return best
