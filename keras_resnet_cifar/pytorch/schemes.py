"""How PyTorch projects name a ResNet's modules: one table.

Checkpoints are recognised, read, written and complained about by this table
alone. It maps our layers (`stage2_block0_conv1`) to modules (`layer2.0.conv1`)
and back; it knows no shapes and needs no framework.
"""

import re
from dataclasses import dataclass, field

from keras_resnet_cifar.errors import unknown

# Means and deviations that the projects' own training code normalises with.
_KUANGLIU_10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_CHENYAOFO_100 = ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))
_WEIAICUNZAI_100 = (
    (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
    (0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
)
_CIFAR = {10: _KUANGLIU_10, 20: "cifar100-coarse", 100: "cifar100"}


@dataclass(frozen=True)
class Scheme:
    """One project's names.

    Attributes:
        name: What `--to-torch` calls it.
        source: The project, and which nets of it.
        stages: The module of each stage; a net has as many stages.
        parts: `{part of a block: module inside the block}`.
        ends: `{layer before or after the blocks: module}`.
        normalization: `{classes: normalisation}` of the project's own
            training; the key `None` stands for any other number.
        identity: Whether a shortcut may have no tensors (option A).
        preactivation: Whether its nets are pre-activation nets (without
            BatchNorm before the pooling).
        stems: Stems that its nets may have.
    """

    name: str
    source: str
    stages: tuple
    parts: dict
    ends: dict
    normalization: dict = field(default_factory=lambda: _CIFAR)
    identity: bool = False
    preactivation: bool = False
    stems: tuple = ("cifar",)

    def module(self, layer):
        """The module of one of our layers, or `None` if it has none."""
        if layer in self.ends:
            return self.ends[layer]
        match = re.fullmatch(r"stage(\d+)_block(\d+)_(\w+)", layer)
        if not match or match[3] not in self.parts:
            return None
        stage = int(match[1]) - 1
        if stage >= len(self.stages):
            return None
        return f"{self.stages[stage]}.{match[2]}.{self.parts[match[3]]}"

    def layer(self, module):
        """Our layer that a module is, or `None` if there is none."""
        for layer, name in self.ends.items():
            if name == module:
                return layer
        stage, _, rest = module.partition(".")
        block, _, inner = rest.partition(".")
        if stage not in self.stages or not re.fullmatch(r"0|[1-9]\d*", block):
            return None
        for part, name in self.parts.items():
            if name == inner:
                number = self.stages.index(stage) + 1
                return f"stage{number}_block{block}_{part}"
        return None

    @property
    def essential(self):
        """Layers that each net of this scheme has."""
        firsts = [f"stage{s + 1}_block0_conv1" for s in range(len(self.stages))]
        return [*self.ends, *firsts]


def _blocks(convs, bns, shortcut, shortcut_bn):
    """The table `Scheme.parts` from modules in the order of the layers."""
    parts = {f"conv{i}": name for i, name in enumerate(convs, start=1)}
    parts |= {f"bn{i}": name for i, name in enumerate(bns, start=1)}
    parts["shortcut_conv"] = shortcut
    if shortcut_bn:
        parts["shortcut_bn"] = shortcut_bn
    return parts


_CONVS, _BNS = ("conv1", "conv2", "conv3"), ("bn1", "bn2", "bn3")
_SHORTCUT = _blocks(_CONVS, _BNS, "shortcut.0", "shortcut.1")
_DOWNSAMPLE = _blocks(_CONVS, _BNS, "downsample.0", "downsample.1")
_LAYERS = ("layer1", "layer2", "layer3", "layer4")
_STEM = {"stem_conv": "conv1", "stem_bn": "bn1"}

SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            name="akamaster",
            source="akamaster/pytorch_resnet_cifar10: three stages, option A "
            "or B",
            stages=_LAYERS[:3],
            parts=_SHORTCUT,
            ends=_STEM | {"head_dense": "linear"},
            normalization={None: "imagenet"},
            identity=True,
        ),
        Scheme(
            name="chenyaofo",
            source="chenyaofo/pytorch-cifar-models: three stages",
            stages=_LAYERS[:3],
            parts=_DOWNSAMPLE,
            ends=_STEM | {"head_dense": "fc"},
            normalization=_CIFAR | {100: _CHENYAOFO_100},
        ),
        Scheme(
            name="kuangliu",
            source="kuangliu/pytorch-cifar, ResNet: four stages",
            stages=_LAYERS,
            parts=_SHORTCUT,
            ends=_STEM | {"head_dense": "linear"},
        ),
        Scheme(
            name="kuangliu-preact",
            source="kuangliu/pytorch-cifar, PreActResNet: four stages",
            stages=_LAYERS,
            parts=_blocks(_CONVS, _BNS, "shortcut.0", None),
            ends={"stem_conv": "conv1", "head_dense": "linear"},
            preactivation=True,
        ),
        Scheme(
            name="weiaicunzai",
            source="weiaicunzai/pytorch-cifar100, ResNet: four stages",
            stages=("conv2_x", "conv3_x", "conv4_x", "conv5_x"),
            parts=_blocks(
                [f"residual_function.{i}" for i in (0, 3, 6)],
                [f"residual_function.{i}" for i in (1, 4, 7)],
                "shortcut.0",
                "shortcut.1",
            ),
            ends={
                "stem_conv": "conv1.0",
                "stem_bn": "conv1.1",
                "head_dense": "fc",
            },
            normalization=_CIFAR | {100: _WEIAICUNZAI_100},
        ),
        Scheme(
            name="torchvision",
            source="torchvision and timm ResNets: four stages, either stem",
            stages=_LAYERS,
            parts=_DOWNSAMPLE,
            ends=_STEM | {"head_dense": "fc"},
            stems=("cifar", "imagenet"),
        ),
    )
}


def get_scheme(name):
    """Returns a `Scheme` by name; raises `InputError` if there is none."""
    if name not in SCHEMES:
        raise unknown("scheme", name, SCHEMES)
    return SCHEMES[name]


def recognise(modules):
    """Returns the scheme that fits names of modules with tensors best.

    `None` where more than half of them, counting those that are absent, are
    wrong in every scheme.
    """
    best, least = None, len(modules) / 2
    for scheme in SCHEMES.values():
        layers = {scheme.layer(module) for module in modules}
        foreign = sum(scheme.layer(module) is None for module in modules)
        wrong = foreign + len(set(scheme.essential) - layers)
        if wrong < least:
            best, least = scheme, wrong
    return best


def default_normalization(scheme, stem, num_classes):
    """Returns the normalisation that a scheme's nets were trained with.

    ImageNet's for akamaster's nets and those with the ImageNet stem, else the
    project's own of the CIFAR that has so many classes, else `None`.
    """
    if stem == "imagenet":
        return "imagenet"
    return scheme.normalization.get(num_classes, scheme.normalization.get(None))
