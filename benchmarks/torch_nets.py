"""ResNets in plain PyTorch, with the module names of known repositories.

The benchmark times them, and tests compare the Keras nets with them. They
follow the papers and share no code with the package.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.models.architectures import Architecture


def relu(x):
    return functional.relu(x, inplace=True)  # saves a pass over memory


def conv(inputs, outputs, kernel, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def convolutions(inputs, width, stride, bottleneck):
    """The convolutions of a block."""
    if bottleneck:
        return [
            conv(inputs, width, 1),
            conv(width, width, 3, stride),
            conv(width, 4 * width, 1),
        ]
    return [conv(inputs, width, 3, stride), conv(width, width, 3)]


class OptionA(nn.Module):
    """Every second pixel; zeros for the new channels, half on each side."""

    def forward(self, x):
        side = x.shape[1] // 2
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side))


def shortcut(inputs, outputs, stride, kind):
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    if kind == "identity":
        return OptionA()
    projection = conv(inputs, outputs, 3 if kind == "conv3x3" else 1, stride)
    return nn.Sequential(projection, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Post-activation."""

    def __init__(self, inputs, width, stride, bottleneck, kind, name):
        super().__init__()
        convs = convolutions(inputs, width, stride, bottleneck)
        self.depth, self.name = len(convs), name
        for i, layer in enumerate(convs, start=1):
            self.add_module(f"conv{i}", layer)
            self.add_module(f"bn{i}", nn.BatchNorm2d(layer.out_channels))
        outputs = convs[-1].out_channels
        self.add_module(name, shortcut(inputs, outputs, stride, kind))

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = relu(y) if i < self.depth else y
        return relu(y + getattr(self, self.name)(x))


class SequentialBlock(nn.Module):
    """The same with weiaicunzai's module names."""

    def __init__(self, inputs, width, stride, bottleneck, kind, name):
        super().__init__()
        layers = []
        for layer in convolutions(inputs, width, stride, bottleneck):
            outputs = layer.out_channels
            layers += [layer, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.residual_function = nn.Sequential(*layers[:-1])
        self.shortcut = shortcut(inputs, outputs, stride, kind)

    def forward(self, x):
        return relu(self.residual_function(x) + self.shortcut(x))


class PreActBlock(nn.Module):
    """Pre-activation; a projection takes the activated input, without BN."""

    def __init__(self, inputs, width, stride, bottleneck, kind, name):
        super().__init__()
        convs = convolutions(inputs, width, stride, bottleneck)
        self.depth = len(convs)
        for i, layer in enumerate(convs, start=1):
            self.add_module(f"bn{i}", nn.BatchNorm2d(layer.in_channels))
            self.add_module(f"conv{i}", layer)
        outputs = convs[-1].out_channels
        self.shortcut = shortcut(inputs, outputs, stride, kind)[:1]

    def forward(self, x):
        y = relu(self.bn1(x))
        x = self.shortcut(y) if len(self.shortcut) else x
        y = self.conv1(y)
        for i in range(2, self.depth + 1):
            y = getattr(self, f"conv{i}")(relu(getattr(self, f"bn{i}")(y)))
        return x + y


LAYERS = ("layer1", "layer2", "layer3", "layer4")
CONVS = ("conv2_x", "conv3_x", "conv4_x", "conv5_x")
# Scheme -> block, name of its shortcut, names of the stages, name of the head.
NAMES = {
    "akamaster": (Block, "shortcut", LAYERS[:3], "linear"),
    "chenyaofo": (Block, "downsample", LAYERS[:3], "fc"),
    "kuangliu": (Block, "shortcut", LAYERS, "linear"),
    "kuangliu-preact": (PreActBlock, "shortcut", LAYERS, "linear"),
    "weiaicunzai": (SequentialBlock, "shortcut", CONVS, "fc"),
    "torchvision": (Block, "downsample", LAYERS, "fc"),
}


class Net(nn.Module):
    """A ResNet of a scheme; images `[N, 3, H, W]`, normalised, to logits.

    `scheme` is a key of `NAMES`; `widths` and `blocks` are those of each stage.
    `kind`, that of the shortcuts, is `"identity"`, `"projection"` or
    `"conv3x3"`. `stem` is its kernel: 3, or 7 with stride 2 and pooling.
    """

    def __init__(
        self,
        scheme: str,
        widths: Sequence[int],
        blocks: Sequence[int],
        bottleneck: bool = False,
        kind: str = "projection",
        stem: int = 3,
        classes: int = 10,
    ):
        super().__init__()
        block, path, self.stages, self.head = NAMES[scheme]
        self.pool = stem == 7
        inputs = widths[0]
        first = conv(3, inputs, stem, 2 if self.pool else 1)
        if block is SequentialBlock:
            first = nn.Sequential(first, nn.BatchNorm2d(inputs), nn.ReLU())
        self.conv1 = first
        if block is Block:
            self.bn1 = nn.BatchNorm2d(inputs)
        for i, stage in enumerate(self.stages):
            layers = []
            for j in range(blocks[i]):
                stride = 2 if i and not j else 1
                layers.append(
                    block(inputs, widths[i], stride, bottleneck, kind, path)
                )
                inputs = widths[i] * (4 if bottleneck else 1)
            self.add_module(stage, nn.Sequential(*layers))
        self.add_module(self.head, nn.Linear(inputs, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        if hasattr(self, "bn1"):
            x = relu(self.bn1(x))
        if self.pool:
            x = functional.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return getattr(self, self.head)(x.mean((2, 3)))


def net_like(arch: Architecture, classes: int = 10) -> Net:
    """Returns the `Net` of an `Architecture`.

    Raises `InputError` if no known repository has such nets.
    """
    scheme = {3: "akamaster", 4: "torchvision"}.get(len(arch.widths))
    if arch.preactivation:
        plain = arch.final_norm or arch.shortcut == "identity"
        known = len(arch.widths) == 4 and not plain
        scheme = "kuangliu-preact" if known else None
    if scheme is None:
        raise InputError(
            f"{arch.name} has no counterpart among the PyTorch nets: give "
            "another arch"
        )
    return Net(
        scheme,
        arch.widths,
        arch.stage_blocks,
        arch.block == "bottleneck",
        arch.shortcut,
        7 if arch.stem == "imagenet" else 3,
        classes,
    )
