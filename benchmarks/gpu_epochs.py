"""Times whole epochs of `fit`, without files and evaluation.

    KERAS_BACKEND=jax python -m benchmarks.gpu_epochs

prints images per second, the median over epochs after a first one, on random
images. `--derived-gradient` has JAX derive the gradient of BatchNorm.
"""

import argparse
import statistics
from typing import Any
from unittest import mock

import numpy as np

from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.training import layers
from keras_resnet_cifar.training.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--recipe", default="cosine")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--derived-gradient", action="store_true")
    args = parser.parse_args()
    if args.derived_gradient:
        _derive_gradients()
    shape = (args.images, 32, 32, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    data = images, np.arange(args.images) % 10
    run = train(
        build_resnet(args.arch),
        data,
        args.recipe,
        epochs=1 + args.epochs,
        validation=0,
        verbose=False,
    )
    speeds = [row["images_per_second"] for row in run.history[1:]]
    print(f"{statistics.median(speeds):,.0f} images/s")


def _derive_gradients() -> None:
    """Makes BatchNorm under JAX compute as on a CPU.

    Its two sums are separate, and JAX derives its gradient.
    """
    normalize = layers._normalize

    def on_cpu(layer: Any, x: Any) -> tuple:
        with mock.patch("jax.default_backend", lambda: "cpu"):
            return normalize(layer, x)

    layers._normalize = on_cpu


if __name__ == "__main__":
    main()
