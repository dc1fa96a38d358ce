"""Finds, reads and downloads CIFAR in the format of `tensorflow_datasets`."""

import contextlib
import json
import os
import re
import urllib.request
from pathlib import Path

import keras

from keras_resnet_cifar.data.checks import Splits, check_form
from keras_resnet_cifar.errors import InputError, explained

HOST = "https://www.cs.toronto.edu/~kriz/cifar.html"  # tfds downloads from it
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_TFDS_CLASSES = "tensorflow_datasets.core.features."


def home() -> Path:
    """Returns the folder where tfds keeps its datasets."""
    given = os.environ.get("TFDS_DATA_DIR")
    return Path(given or "~/tensorflow_datasets").expanduser()


def find(root: Path, family: str, search_root: bool) -> Path | None:
    """Returns the folder of the newest prepared version under `root`.

    With `search_root`, `root` itself may be the folder of the dataset or of a
    version.
    """
    infos = [*(root / family).glob("*/dataset_info.json")]
    if search_root and not infos:
        infos = [*root.glob("*/dataset_info.json"), root / "dataset_info.json"]
    return max(
        (path.parent for path in infos if os.path.isfile(path)),
        key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)],
        default=None,
    )


def read(family: str, folder: Path) -> Splits:
    """Reads a prepared version."""
    tfds = _import_tfds(folder)
    with explained(
        f"{folder}: tensorflow_datasets cannot read it",
        "delete it and prepare it again",
    ):
        features = (folder / "features.json").read_text(encoding="utf-8")
        json.loads(features, object_hook=_refuse_foreign_code)
        return _read(tfds.builder_from_directory(folder), family)


def download(family: str, data_dir: str | os.PathLike) -> Splits:
    """Downloads a dataset to `data_dir` with tfds, and reads it."""
    tfds = _import_tfds(f"the download of {family}")
    with explained(
        f"the download of {family} by tensorflow_datasets failed",
        "check the network",
    ):
        builder = tfds.builder(family, data_dir=data_dir)
        if not builder.is_prepared():
            # tfds itself retries for minutes if there is no network.
            urllib.request.urlopen(HOST, timeout=20).close()
            builder.download_and_prepare()
        return _read(builder, family)


def _import_tfds(purpose):
    with explained(
        f"{purpose} needs tensorflow-datasets, which is not installed here",
        "pip install tensorflow tensorflow-datasets",
    ):
        import tensorflow as tf
        import tensorflow_datasets as tfds
    if keras.config.backend() != "tensorflow":
        # TensorFlow would take the GPU's memory from the backend that trains.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
    return tfds


def _refuse_foreign_code(entry):
    # tfds imports the module of every class that features.json names, even in
    # JSON inside strings.
    for key, value in entry.items():
        foreign = key in _CLASS_KEYS and not str(value).startswith(
            _TFDS_CLASSES
        )
        if isinstance(value, str) and (foreign or "{" in value):
            raise InputError(
                f"refused: features.json asks for {value[:80]}; only "
                f"{_TFDS_CLASSES}* are read"
            )
    return entry


def _read(builder, family):
    names = ("train", "test")
    wholes = builder.as_dataset(split=names, batch_size=-1)
    return {
        name: check_form(whole["image"].numpy(), whole["label"].numpy(), family)
        for name, whole in zip(names, wholes, strict=True)
    }
