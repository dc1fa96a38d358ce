"""The training loop that PyTorch's users write, to be timed beside `fit`.

It takes what makes such a loop fast: the images lie on the device, padded and
normalised once (as in KellerJordan/cifar10-airbench), a batch is cropped and
flipped by one gather, memory is channels_last, the optimizer is fused, losses
are added up without waiting for the device, and cuDNN and TF32 are let loose.
No Keras is imported here.
"""

import itertools

import numpy as np
import torch
from torch.nn import functional

from benchmarks.torch_nets import net_like
from keras_resnet_cifar.training.schedules import rates_of

EVALUATION_BATCH = 500


class TorchLoop:
    """A ResNet in training by a recipe.

    Args:
        arch: An `Architecture`.
        recipe: A `Recipe`; its augmentation may be crops and flips.
        images: uint8 `[N, H, W, 3]`, in host memory.
        labels: Integers `[N]`.
        mean, std: Of each channel, in 0 to 1.
        precision: `"float32"` or `"mixed_bfloat16"`, which is autocast.
        compiler: A mode of `torch.compile`, or `None` to run eagerly.
    """

    def __init__(
        self, arch, recipe, images, labels, mean, std, precision, compiler=None
    ):
        self.device = torch.device(
            "cuda" if torch.cuda.is_available() else "cpu"
        )
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        self.recipe = recipe
        self.images = _normalized(images, mean, std, recipe, self.device)
        self.labels = torch.as_tensor(
            labels, dtype=torch.int64, device=self.device
        )
        self.half = precision == "mixed_bfloat16"
        self.net = net_like(arch, classes=int(labels.max()) + 1).to(
            self.device, memory_format=torch.channels_last
        )
        self.rates = rates_of(recipe, len(labels) // recipe.batch_size)
        self.optimizer = _optimizer(self.net, recipe)
        self.steps = 0
        self.total = torch.zeros(2, device=self.device)  # of loss, of hits
        self.forward = self._forward
        if compiler:
            self.forward = torch.compile(self._forward, mode=compiler)

    def train(self, batches, steps):
        """Takes so many steps on batches, and waits for the last."""
        self.net.train()
        for images, labels in itertools.islice(batches, steps):
            for group in self.optimizer.param_groups:
                group["lr"] = float(self.rates[self.steps])
            loss, logits = self.forward(images, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            hits = (logits.argmax(1) == labels).sum()
            self.total += torch.stack([loss.detach(), hits])
            self.steps += 1
        self.total.tolist()  # waits

    def _forward(self, images, labels):
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.half
        ):
            logits = self.net(images)
        loss = functional.cross_entropy(
            logits.float(), labels, label_smoothing=self.recipe.label_smoothing
        )
        return loss, logits

    def batches(self):
        """Yields augmented batches without end, all of it on the device."""
        size = self.recipe.batch_size
        while True:
            order = torch.randperm(len(self.labels), device=self.device)
            for start in range(0, len(order) - size + 1, size):
                picked = order[start : start + size]
                images = augmented(
                    self.images, picked, self.recipe.padding, self.recipe.flip
                )
                yield images, self.labels[picked]

    def loaded(self, workers):
        """Yields batches as a DataLoader's processes make them, image by image.

        Args:
            workers: How many processes.
        """
        loader = torch.utils.data.DataLoader(
            _Augmented(self.images.cpu(), self.labels.cpu(), self.recipe),
            batch_size=self.recipe.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
        )
        while True:
            for images, labels in loader:
                yield (
                    images.to(
                        self.device,
                        memory_format=torch.channels_last,
                        non_blocking=True,
                    ),
                    labels.to(self.device, non_blocking=True),
                )

    @torch.inference_mode()
    def evaluate(self):
        """Returns the share of right answers on all images, unaugmented."""
        self.net.eval()
        padding = self.recipe.padding
        side = self.images.shape[1] - 2 * padding
        crop = slice(padding, padding + side)
        hits = torch.zeros((), device=self.device)
        for start in range(0, len(self.labels), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            images = self.images[part, crop, crop].permute(0, 3, 1, 2)
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.half
            ):
                logits = self.net(images)
            hits += (logits.argmax(1) == self.labels[part]).sum()
        return hits.item() / len(self.labels)


def augmented(images, picked, padding, flip):
    """Crops and flips a batch of padded images, each in its own way.

    Args:
        images: float `[N, H + 2 * padding, W + 2 * padding, 3]`.
        picked: Which images, int64 `[B]`.
        padding: Pixels on each side; offsets are uniform in 0 to twice that.
        flip: Whether half of them are mirrored.

    Returns:
        float `[B, 3, H, W]`, channels last in memory.
    """
    device, count = images.device, len(picked)
    side = torch.arange(images.shape[1] - 2 * padding, device=device)
    rows, columns = torch.randint(2 * padding + 1, (2, count, 1), device=device)
    mirrored = torch.rand(count, 1, device=device) < (0.5 if flip else 0)
    columns = columns + torch.where(mirrored, side.flip(0), side)
    rows = rows + side
    batch = images[picked[:, None, None], rows[:, :, None], columns[:, None]]
    return batch.permute(0, 3, 1, 2)


class _Augmented(torch.utils.data.Dataset):
    """Padded images that are cropped and flipped one at a time."""

    def __init__(self, images, labels, recipe):
        self.images, self.labels, self.recipe = images, labels, recipe

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        picked = torch.tensor([index])
        image = augmented(
            self.images, picked, self.recipe.padding, self.recipe.flip
        )
        return image[0], self.labels[index]


def _normalized(images, mean, std, recipe, device):
    """float32 `[N, H, W, 3]` on the device, padded on each side."""
    sides = (0, 0), (recipe.padding,) * 2, (recipe.padding,) * 2, (0, 0)
    mode = "constant" if recipe.padding_mode == "zero" else "reflect"
    images = torch.from_numpy(np.pad(images, sides, mode)).to(device)
    mean, std = (torch.tensor(part, device=device) for part in (mean, std))
    return images.float().div_(255).sub_(mean).div_(std)


def _optimizer(net, recipe):
    """`torch.optim.SGD` with the recipe's numbers."""
    spared = [p for p in net.parameters() if p.ndim < 2]
    kernels = [p for p in net.parameters() if p.ndim >= 2]
    decay = recipe.weight_decay
    return torch.optim.SGD(
        [
            {"params": kernels, "weight_decay": decay},
            {
                "params": spared,
                "weight_decay": decay if recipe.decay_on == "all" else 0.0,
            },
        ],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        fused=True,
    )
