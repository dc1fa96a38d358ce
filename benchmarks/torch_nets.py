"""ResNets in plain PyTorch, with the module names of `torch_schemes.py`.

The benchmark times them, and the tests take them for PyTorch's truth: they are
written after the papers and share no code with the Keras nets.
"""

from torch import nn
from torch.nn import functional
from torch.nn.functional import pad

from keras_resnet_cifar.errors import InputError


def relu(x):
    return functional.relu(x, inplace=True)  # one pass over memory less


def conv(inputs, outputs, kernel, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class OptionA(nn.Module):
    """Every second pixel; zeros for the new channels, half on each side."""

    def forward(self, x):
        side = x.shape[1] // 2
        return pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side))


def plan(inputs, width, stride, bottleneck):
    """(inputs, outputs, kernel, stride) of a block's convolutions."""
    if bottleneck:
        return [
            (inputs, width, 1, 1),
            (width, width, 3, stride),
            (width, 4 * width, 1, 1),
        ]
    return [(inputs, width, 3, stride), (width, width, 3, 1)]


def shortcut(inputs, outputs, stride, kind):
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    if kind == "identity":
        return OptionA()
    kernel = 3 if kind == "conv3x3" else 1
    return nn.Sequential(
        conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs)
    )


class Block(nn.Module):
    """Post-activation; the shortcut's module has the name that is asked."""

    def __init__(self, inputs, width, stride, bottleneck, kind, name):
        super().__init__()
        convs = plan(inputs, width, stride, bottleneck)
        self.depth, self.name = len(convs), name
        for i, shape in enumerate(convs, start=1):
            self.add_module(f"conv{i}", conv(*shape))
            self.add_module(f"bn{i}", nn.BatchNorm2d(shape[1]))
        self.outputs = convs[-1][1]
        self.add_module(name, shortcut(inputs, self.outputs, stride, kind))

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = relu(y) if i < self.depth else y
        return relu(y + getattr(self, self.name)(x))


class SequentialBlock(nn.Module):
    """The same in weiaicunzai's words."""

    def __init__(self, inputs, width, stride, bottleneck, kind, name):
        super().__init__()
        steps = []
        for shape in plan(inputs, width, stride, bottleneck):
            steps += [conv(*shape), nn.BatchNorm2d(shape[1]), nn.ReLU()]
        self.residual_function = nn.Sequential(*steps[:-1])
        self.outputs = shape[1]
        self.shortcut = shortcut(inputs, self.outputs, stride, kind)

    def forward(self, x):
        return relu(self.residual_function(x) + self.shortcut(x))


class PreActBlock(nn.Module):
    """Pre-activation; a projection takes the activated input, without BN."""

    def __init__(self, inputs, width, stride, bottleneck, kind, name):
        super().__init__()
        convs = plan(inputs, width, stride, bottleneck)
        self.depth = len(convs)
        for i, shape in enumerate(convs, start=1):
            self.add_module(f"bn{i}", nn.BatchNorm2d(shape[0]))
            self.add_module(f"conv{i}", conv(*shape))
        self.outputs = convs[-1][1]
        path = shortcut(inputs, self.outputs, stride, kind)
        if len(path):
            self.shortcut = path[:1]

    def forward(self, x):
        y = relu(self.bn1(x))
        x = self.shortcut(y) if hasattr(self, "shortcut") else x
        y = self.conv1(y)
        for i in range(2, self.depth + 1):
            y = getattr(self, f"conv{i}")(relu(getattr(self, f"bn{i}")(y)))
        return x + y


LAYERS = ("layer1", "layer2", "layer3", "layer4")

# Scheme -> block, name of its shortcut, names of the stages, name of the head.
NAMES = {
    "akamaster": (Block, "shortcut", LAYERS[:3], "linear"),
    "chenyaofo": (Block, "downsample", LAYERS[:3], "fc"),
    "kuangliu": (Block, "shortcut", LAYERS, "linear"),
    "kuangliu-preact": (PreActBlock, "shortcut", LAYERS, "linear"),
    "weiaicunzai": (
        SequentialBlock,
        "shortcut",
        ("conv2_x", "conv3_x", "conv4_x", "conv5_x"),
        "fc",
    ),
    "torchvision": (Block, "downsample", LAYERS, "fc"),
}


class Net(nn.Module):
    """A ResNet of a scheme; images `[N, 3, H, W]`, normalised, to logits.

    Args:
        scheme: A key of `NAMES`.
        widths, blocks: Of each stage.
        bottleneck: Kind of block.
        kind: `"identity"`, `"projection"` or `"conv3x3"`.
        stem: Kernel of the stem: 3, or 7 with stride 2 and pooling.
        classes: Number of logits.
    """

    def __init__(
        self,
        scheme,
        widths,
        blocks,
        bottleneck=False,
        kind="projection",
        stem=3,
        classes=10,
    ):
        super().__init__()
        block, shortcut_name, self.stages, self.head = NAMES[scheme]
        self.pool = stem == 7
        self.conv1 = conv(3, widths[0], stem, 2 if self.pool else 1)
        if block is SequentialBlock:
            self.conv1 = nn.Sequential(
                self.conv1, nn.BatchNorm2d(widths[0]), nn.ReLU()
            )
        elif block is not PreActBlock:
            self.bn1 = nn.BatchNorm2d(widths[0])
        channels = widths[0]
        for i, (stage, width, count) in enumerate(
            zip(self.stages, widths, blocks, strict=True)
        ):
            made = []
            for j in range(count):
                stride = 2 if i and not j else 1
                made.append(
                    block(
                        channels, width, stride, bottleneck, kind, shortcut_name
                    )
                )
                channels = made[-1].outputs
            self.add_module(stage, nn.Sequential(*made))
        self.add_module(self.head, nn.Linear(channels, classes))

    def forward(self, x):
        x = self.conv1(x)
        if hasattr(self, "bn1"):
            x = relu(self.bn1(x))
        if self.pool:
            x = functional.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return getattr(self, self.head)(x.mean((2, 3)))


def net_like(arch, classes=10):
    """Returns the `Net` of an `Architecture`.

    Raises:
        InputError: No project has such nets.
    """
    scheme = {3: "akamaster", 4: "torchvision"}.get(len(arch.widths))
    if arch.preactivation:
        plain = arch.final_norm or arch.shortcut == "identity"
        known = len(arch.widths) == 4 and not plain
        scheme = "kuangliu-preact" if known else None
    if scheme is None:
        raise InputError(
            f"{arch.name} has no counterpart among the PyTorch nets: name "
            "another arch"
        )
    return Net(
        scheme,
        arch.widths,
        arch.stage_blocks,
        bottleneck=arch.block == "bottleneck",
        kind=arch.shortcut,
        stem=7 if arch.stem == "imagenet" else 3,
        classes=classes,
    )
