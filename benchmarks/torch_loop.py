"""A fast plain PyTorch training loop, to be compared with `fit`.

The images are on the device, padded and normalized once (as in
KellerJordan/cifar10-airbench), one gather crops and flips a batch, memory is
channels_last, the optimizer is fused, losses are added up without waiting for
the device, cuDNN benchmarking is on, and TF32 is allowed.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.torch_nets import net_like
from keras_resnet_cifar.models.architectures import Architecture
from keras_resnet_cifar.training.recipes import Recipe

Batches = Iterable[tuple[Tensor, Tensor]]
_EVALUATION_BATCH = 500


class TorchLoop:
    """A ResNet that trains by a recipe of crops, flips, SGD and one cycle.

    The images are uint8 `[N, H, W, 3]`, in host memory; `mean` and `std` are
    those of each channel, 0 to 1. `precision` is `"float32"` or
    `"mixed_bfloat16"`, which is autocast. `compiler` is a mode of
    `torch.compile`; by default, the loop runs eagerly.
    """

    def __init__(
        self,
        arch: Architecture,
        recipe: Recipe,
        images: np.ndarray,
        labels: np.ndarray,
        mean: Sequence[float],
        std: Sequence[float],
        precision: str,
        compiler: str | None = None,
    ) -> None:
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        self.recipe = recipe
        self.images = self._prepared(images, mean, std)
        self.labels = torch.as_tensor(labels.astype("int64")).to(self.device)
        self.half = precision == "mixed_bfloat16"
        net = net_like(arch, classes=int(labels.max()) + 1).to(self.device)
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore
        self.optimizer = _optimizer(self.net, recipe)
        self.rates = one_cycle(recipe, len(labels) // recipe.batch_size)
        self.steps = 0
        self.total = torch.zeros(2, device=self.device)  # of losses, of hits
        self.forward = self._forward
        if compiler:
            self.forward = torch.compile(self._forward, mode=compiler)

    def train(self, batches: Batches, steps: int) -> None:
        """Takes a number of steps and waits for the last."""
        self.net.train()
        for images, labels in islice(batches, steps):
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

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields augmented batches without end, made on the device."""
        size, recipe = self.recipe.batch_size, self.recipe
        while True:
            order = torch.randperm(len(self.labels), device=self.device)
            for picked in order.split(size)[: len(order) // size]:
                images = augmented(
                    self.images, picked, recipe.padding, recipe.flip
                )
                yield images, self.labels[picked]

    def loaded(self, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields batches of a `DataLoader`, which augments image by image."""
        loader: torch.utils.data.DataLoader = torch.utils.data.DataLoader(
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
                images = images.to(self.device, non_blocking=True)
                images = images.contiguous(memory_format=torch.channels_last)
                yield images, labels.to(self.device, non_blocking=True)

    @torch.inference_mode()
    def evaluate(self) -> float:
        """Returns the accuracy on all images, 0 to 1, without augmentation."""
        self.net.eval()
        padding = self.recipe.padding
        crop = slice(padding, self.images.shape[1] - padding)
        images = self.images[:, crop, crop].permute(0, 3, 1, 2)
        hits = torch.zeros((), device=self.device)
        for batch, labels in zip(
            images.split(_EVALUATION_BATCH),
            self.labels.split(_EVALUATION_BATCH),
            strict=True,
        ):
            batch = batch.contiguous(memory_format=torch.channels_last)
            logits = self._logits(batch)
            hits += (logits.argmax(1) == labels).sum()
        return hits.item() / len(self.labels)

    def _forward(self, images, labels):
        logits = self._logits(images)
        smoothing = self.recipe.label_smoothing
        loss = functional.cross_entropy(
            logits, labels, label_smoothing=smoothing
        )
        return loss, logits

    def _logits(self, images):
        kind = self.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.half):
            return self.net(images).float()

    def _prepared(self, images, mean, std):
        """float32 `[N, H, W, 3]` on the device, normalised and padded."""
        border = (self.recipe.padding, self.recipe.padding)
        mode = "constant" if self.recipe.padding_mode == "zero" else "reflect"
        images = np.pad(images, ((0, 0), border, border, (0, 0)), mode)
        images = torch.from_numpy(images).to(self.device)
        mean, std = (torch.tensor(x, device=self.device) for x in (mean, std))
        return images.float().div_(255).sub_(mean).div_(std)


def one_cycle(recipe: Recipe, steps_per_epoch: int) -> np.ndarray:
    """Returns the rate at each step of a one-cycle recipe.

    It is implemented again because Keras must not be imported here.
    """
    name, shape = recipe.schedule
    if name != "one_cycle":
        raise ValueError(f"schedule={name!r}: the loop knows one_cycle only")
    steps = recipe.epochs * steps_per_epoch
    corners = [0, shape["warmup"] * steps, steps]
    factors = [shape.get("start", 0.0), 1.0, shape.get("end", 0.0)]
    return recipe.learning_rate * np.interp(range(steps), corners, factors)


def augmented(
    images: Tensor, picked: Tensor, padding: int, flip: bool
) -> Tensor:
    """Crops and flips a batch of padded images, each in its own way.

    `images` are float `[N, H + 2 * padding, W + 2 * padding, 3]`, and `picked`
    are indices, int64 `[B]`. Offsets are uniform in 0 to `2 * padding`; `flip`
    mirrors half of the images. Returns float `[B, 3, H, W]`, channels last in
    memory.
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
        picked, recipe = torch.tensor([index]), self.recipe
        image = augmented(self.images, picked, recipe.padding, recipe.flip)
        return image[0], self.labels[index]


def _optimizer(net, recipe):
    """`torch.optim.SGD` with the recipe's numbers."""
    decay = recipe.weight_decay
    spared = decay if recipe.decay_on == "all" else 0.0
    groups = [
        {
            "params": [p for p in net.parameters() if (p.ndim > 1) == kernels],
            "weight_decay": decay if kernels else spared,
        }
        for kernels in (True, False)
    ]
    return torch.optim.SGD(
        groups,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        fused=True,
    )
