"""What several tests share: small data, small nets, the real images."""

import importlib.util
import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if importlib.util.find_spec("filelock"):  # it lets processes share the cache
    cache = Path(__file__).parents[1] / ".pytest_cache" / "jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**30))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import helpers
import numpy as np
import pytest

from keras_resnet_cifar.data import shapes
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.data.load import DATA_VARIABLE, Dataset, Split


def pytest_addoption(parser):
    parser.addoption(
        "--run-slow", action="store_true", help="run the long tests as well"
    )


def pytest_collection_modifyitems(config, items):
    slow = [item for item in items if "slow" in item.keywords]
    if not config.getoption("--run-slow"):
        skip = pytest.mark.skip(reason="slow: runs with --run-slow")
        for item in slow:
            item.add_marker(skip)
    # Files with slow tests come first, so that the last ones are short.
    cost = Counter(item.path for item in items)
    if config.getoption("--run-slow"):
        cost.update({item.path: 100 for item in slow})
    items.sort(key=lambda item: -cost[item.path])


@pytest.fixture
def tiny_model():
    """Builds a small net with given seed: `tiny_model(seed=0, **shape)`."""
    import keras

    from keras_resnet_cifar.models.resnet import build_resnet

    def build(seed=0, **shape):
        keras.utils.set_random_seed(seed)
        return build_resnet(
            **(helpers.TINY | {"normalization": "shapes"} | shape)
        )

    return build


@pytest.fixture(scope="session")
def tiny_data():
    """The drawn dataset with 256 + 64 + 64 images."""
    images, labels = shapes.draw(384, seed=0)
    cut = [slice(0, 256), slice(256, 320), slice(320, 384)]
    train, validation, test = (Split(images[s], labels[s]) for s in cut)
    return Dataset(
        name="shapes",
        train=train,
        validation=validation,
        test=test,
        class_names=DATASETS["shapes"].class_names,
        source="drawn for the tests",
        fingerprints={"train": "none", "test": "none"},
        verified=True,
        request={},
    )


@pytest.fixture
def tiny_cifar(tmp_path):
    """A folder with a cifar10 of 256 + 64 drawn images, in npz."""
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    for split, count, seed in (("train", 256, 0), ("test", 64, 1)):
        x, y = shapes.draw(count, seed=seed)
        np.savez(folder / f"{split}.npz", x=x, y=y)
    return folder.parent


@pytest.fixture
def real_data():
    """The folder of the real images, or a skip that says how to have them."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        pytest.skip(f"{DATA_VARIABLE} names no folder with the real images")
    return folder
