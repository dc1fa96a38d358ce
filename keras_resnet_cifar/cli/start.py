"""Starting Keras on its backend."""

import contextlib
import os

from keras_resnet_cifar.errors import InputError


def import_keras():
    """Imports Keras, ready to compute, without notices of C++ on stderr."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with _silent_stderr():
            import keras  # noqa: F401
    except Exception as error:  # each backend fails in its own way
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"Keras cannot start on the backend "
            f"{os.environ.get('KERAS_BACKEND', 'tensorflow')}: {reason}; set "
            "KERAS_BACKEND to tensorflow, jax or torch, whichever is installed"
        ) from error
    from keras_resnet_cifar.device import cache_compilations

    cache_compilations()


@contextlib.contextmanager
def _silent_stderr():
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
