"""A net that was trained before, and one fine-tuning run for all tests."""

from dataclasses import replace

import helpers
import keras
import numpy as np
import pytest

from keras_resnet_cifar.finetuning.finetune import build_finetuned, finetune
from keras_resnet_cifar.models.resnet import build_resnet


@pytest.fixture(scope="session")
def randomize_norms():
    """Returns a function that gives BatchNorm weights as if it was trained."""

    def randomize(model):
        generator = np.random.default_rng(0)
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                size = layer.gamma.shape
                layer.set_weights(generator.uniform(0.5, 1.5, (4, *size)))

    return randomize


@pytest.fixture(scope="session")
def own_net(randomize_norms, tmp_path_factory):
    """The file of a net of three stages that "was trained" before."""
    keras.utils.set_random_seed(0)
    shape = helpers.TINY | {"num_classes": 7, "normalization": "shapes"}
    model = build_resnet(**shape)
    randomize_norms(model)
    path = tmp_path_factory.mktemp("own") / "own.keras"
    model.save(path)
    return path


@pytest.fixture(scope="session")
def start(own_net, tiny_data):
    """Returns `start(output_dir, **options)`, which fine-tunes a new model.

    The model is the same each time. Steps are small: it need not learn much.
    With `validate=False` it is quicker.
    """
    unvalidated = replace(tiny_data, validation=None)
    defaults = {
        "freeze": "stage2",
        "head_epochs": 2,
        "head_learning_rate": 0.01,
        "cache_features": True,
        "learning_rate": 1e-3,
        "batch_size": 64,
        "epochs": 1,
        "verbose": False,
    }

    def run(output_dir, validate=True, **options):
        keras.utils.set_random_seed(0)
        model = build_finetuned(
            own_net, 10, train_norm=options.get("train_norm", False)
        )
        options = defaults | options
        data = tiny_data if validate else unvalidated
        return finetune(model, data, output_dir=output_dir, **options)

    return run


@pytest.fixture(scope="session")
def finished(start, tmp_path_factory):
    """The `Run` that `start` gives, in a folder that no test changes."""
    return start(tmp_path_factory.mktemp("finetuned") / "run")
