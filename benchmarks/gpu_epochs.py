"""Times whole epochs of `fit`, without files and evaluation.

    KERAS_BACKEND=jax python -m benchmarks.gpu_epochs

prints images per second, the median over epochs after a first one, on random
images.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np

from keras_resnet_cifar.cli.main import run as run_command
from keras_resnet_cifar.cli.main import script_parser
from keras_resnet_cifar.errors import checked_number
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.training import layers
from keras_resnet_cifar.training.train import train


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = script_parser(run)
    option = parser.add_argument
    option("--arch", default="resnet20", help="the net (default: resnet20)")
    option("--recipe", default="cosine", help="recipe (default: cosine)")
    images = "number of random images (default: 50,000)"
    option("--images", type=int, default=50_000, help=images)
    epochs = "epochs to time, after a first one (default: 20)"
    option("--epochs", type=int, default=20, help=epochs)
    gradient = "have JAX derive the gradient of BatchNorm"
    option("--derived-gradient", action="store_true", help=gradient)
    return run_command(parser, arguments)


def run(args: argparse.Namespace) -> None:
    """Time whole epochs of `fit`, without files and evaluation."""
    checked_number("images", args.images, int, 1)
    checked_number("epochs", args.epochs, int, 1)
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
    sys.exit(main())
