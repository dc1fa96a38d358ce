"""Writes small datasets in every layout that the package reads."""

import io
import pickle

import numpy as np
from PIL import Image

from keras_resnet_cifar.data import readers
from keras_resnet_cifar.data.datasets import DATASETS

SIZES = {"train": 100, "test": 20}


def make(family, seed=0):
    """`{split: (images, labels)}` of random pixels, some classes each."""
    rng = np.random.default_rng(seed)
    classes = DATASETS[family].num_classes
    return {
        split: (
            rng.integers(0, 256, (n, 32, 32, 3), np.uint8),
            (np.arange(n) * 7 % classes).astype(np.uint8),
        )
        for split, n in SIZES.items()
    }


def planar(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), 3072)


def batches(layout, splits):
    """(file name, images, labels) of each file of a layout."""
    for split, names in layout.files.items():
        parts = (np.array_split(a, len(names)) for a in splits[split])
        yield from zip(names, *parts, strict=True)


def write_python(folder, layout, splits, family, protocol=3):
    key = {"cifar10": b"labels", "cifar100": b"fine_labels"}[family]
    for name, x, y in batches(layout, splits):
        batch = {b"data": planar(x), key: y.tolist(), b"filenames": [b"a.png"]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol))


def write_binary(folder, layout, splits, family):
    for name, x, y in batches(layout, splits):
        labels = [y[:, None]]
        if family == "cifar100":
            labels.insert(0, np.zeros_like(y)[:, None])
        np.concatenate([*labels, planar(x)], 1).tofile(folder / name)


def write_npz(folder, layout, splits, family):
    for name, x, y in batches(layout, splits):
        np.savez(folder / name, x=x, y=y)


def write_one_npz(folder, layout, splits, family):
    # Labels as keras.datasets gives them: int [N, 1].
    (x, y), (x_test, y_test) = splits["train"], splits["test"]
    np.savez(
        folder / f"{family}.npz",
        x_train=x,
        y_train=y[:, None].astype(int),
        x_test=x_test,
        y_test=y_test[:, None].astype(int),
    )


WRITERS = (write_python, write_binary, write_npz, write_one_npz)


def write(root, family, kind=0, nested=True, splits=None, **kwargs):
    """Writes a small dataset; returns its splits and the folder."""
    layout = readers.LAYOUTS[family][kind]
    folder = root / layout.folder if nested else root
    folder.mkdir(parents=True, exist_ok=True)
    splits = splits or make(family)
    WRITERS[kind](folder, layout, splits, family, **kwargs)
    return splits, folder


def write_tfds(tfds, root, family, splits):
    """Prepares a dataset as tensorflow_datasets keeps it."""
    classes = DATASETS[family].num_classes

    def info(self):
        features = {
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(num_classes=classes),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def examples(split):
        for i, (x, y) in enumerate(zip(*splits[split], strict=True)):
            yield i, {"image": x, "label": int(y)}

    body = {
        "VERSION": tfds.core.Version("3.0.2"),
        "name": family,
        "pkg_dir_path": root,
        "_info": info,
        "_split_generators": lambda self, _: {s: examples(s) for s in splits},
        "_generate_examples": None,
    }
    base = tfds.core.GeneratorBasedBuilder
    builder = type("Small", (base,), body, skip_registration=True)
    builder(data_dir=root).download_and_prepare()


def png(image, mode="RGB", kind="PNG"):
    """An image as the bytes of a PNG (or another `kind`) file."""
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, kind)
    return file.getvalue()


def parquet(pngs, **labels):
    """A file of the schema of uoft-cs at Hugging Face, as bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = pa.array(
        [{"bytes": content, "path": None} for content in pngs],
        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    )
    columns = {k: pa.array(v, pa.int64()) for k, v in labels.items()}
    file = io.BytesIO()
    pq.write_table(pa.table({"img": images} | columns), file)
    return file.getvalue()
