"""Starts Keras on its backend."""

import contextlib
import logging
import os
from collections.abc import Iterator

from keras_resnet_cifar.errors import explained


def import_keras(deterministic: bool = False) -> None:
    """Imports Keras without the notices that C++ libraries print.

    `deterministic` makes JAX deterministic on a GPU, too. JAX reads this
    setting when it first computes.
    """
    # It warns about models that are traced one after the other.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    remedy = "set KERAS_BACKEND to an installed one of tensorflow, jax, torch"
    with (
        explained(f"Keras cannot start on the backend {backend}", remedy),
        silent_stderr(),
    ):
        import keras  # noqa: F401
    from keras_resnet_cifar.device import JAX_DETERMINISTIC, cache_compilations

    if deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} {JAX_DETERMINISTIC}".strip()
    cache_compilations()


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Discards stderr in this context, also that of C++ libraries."""
    saved, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(devnull)
