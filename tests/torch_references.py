"""PyTorch's side of comparisons: nets, their weights, and their images."""

import torch
from torch import nn

from benchmarks import torch_nets


def Net(scheme, *arguments, **shape):
    """A net with the module names of a scheme; see `torch_nets.Net`."""
    if scheme == "imgclsmob":
        return Pytorchcv(*arguments, **shape)
    return torch_nets.Net(scheme, *arguments, **shape)


class ConvBlock(nn.Sequential):
    """A convolution `conv`, its BatchNorm `bn`, and maybe a ReLU."""

    def __init__(self, layer, active=True):
        super().__init__()
        self.conv = layer
        self.bn = nn.BatchNorm2d(layer.out_channels)
        if active:
            self.activ = nn.ReLU()


class Unit(nn.Module):
    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        layers = torch_nets.convolutions(inputs, width, stride, bottleneck)
        self.body = nn.Sequential()
        for i, layer in enumerate(layers, start=1):
            active = layer is not layers[-1]
            self.body.add_module(f"conv{i}", ConvBlock(layer, active))
        outputs = layers[-1].out_channels
        if stride > 1 or inputs != outputs:
            projection = torch_nets.conv(inputs, outputs, 1, stride)
            self.identity_conv = ConvBlock(projection, active=False)

    def forward(self, x):
        shortcut = getattr(self, "identity_conv", lambda x: x)
        return torch.relu(self.body(x) + shortcut(x))


class Pytorchcv(nn.Module):
    """osmr/imgclsmob's `CIFARResNet`."""

    def __init__(self, widths, blocks, bottleneck=False, classes=10):
        super().__init__()
        inputs = widths[0]
        self.features = nn.Sequential()
        stem = ConvBlock(torch_nets.conv(3, inputs, 3))
        self.features.add_module("init_block", stem)
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            stage = nn.Sequential()
            for j in range(count):
                stride = 2 if i and not j else 1
                unit = Unit(inputs, width, stride, bottleneck)
                stage.add_module(f"unit{j + 1}", unit)
                inputs = width * (4 if bottleneck else 1)
            self.features.add_module(f"stage{i + 1}", stage)
        self.output = nn.Linear(inputs, classes)

    def forward(self, x):
        return self.output(self.features(x).mean((2, 3)))


def randomized(net, seed=0):
    """The net with random weights and statistics, in inference mode."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.data.uniform_(low, high, generator=generator)

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, fan_in**-0.5, generator=generator)
        elif isinstance(module, nn.Linear):
            uniform(module.weight, -0.5, 0.5)
            uniform(module.bias, -0.5, 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            uniform(module.weight, 0.5, 1.5)
            uniform(module.bias, -0.5, 0.5)
            uniform(module.running_mean, -0.5, 0.5)
            uniform(module.running_var, 0.5, 2)
    return net.eval()


def normalized(images, mean, std):
    """uint8 images `[N, H, W, 3]` as PyTorch's code would have them."""
    images = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (mean, std))
    return (images - mean) / std
