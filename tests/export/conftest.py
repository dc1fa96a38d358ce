"""One small model, and one real export of it in each format per session."""

import importlib.util

import helpers
import keras
import pytest

from keras_resnet_cifar.export.export import export_model
from keras_resnet_cifar.export.verify import FORMATS
from keras_resnet_cifar.models.resnet import build_resnet


def build(normalization="shapes"):
    keras.utils.set_random_seed(0)
    return build_resnet(**helpers.TINY, normalization=normalization)


@pytest.fixture(scope="session")
def model():
    return build()


@pytest.fixture(scope="session")
def exported(tiny_data, tmp_path_factory):
    """Returns `(folder, model, Export)` of a format; the model is bfloat16."""
    exports = {}

    def export(format):
        for package in ("tensorflow", *FORMATS[format][1]):
            if not importlib.util.find_spec(package.replace("-", "_")):
                pytest.skip(f"{package} is not installed")
        if format not in exports:
            policy = keras.config.dtype_policy()
            keras.config.set_dtype_policy("mixed_bfloat16")
            try:
                mixed = build()
            finally:
                keras.config.set_dtype_policy(policy)
            folder = tmp_path_factory.mktemp(format) / "net"
            exports[format] = (
                folder,
                mixed,
                export_model(mixed, folder, format, data=tiny_data),
            )
        return exports[format]

    return export
