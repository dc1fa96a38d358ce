"""PyTorch's side of comparisons: nets, their weights, and their images."""

import torch
from torch import nn

from benchmarks.torch_nets import Net

__all__ = ["Net", "normalized", "randomized"]


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
