"""Damages files of every kind, and reports what becomes of each damage.

    python tests/fuzz.py --places 200
    python tests/fuzz.py --places 200 --kind keras

A damaged file must be refused in one line that names it, or give the content
of the whole one. Where a format has no checksum, `blind` says so: then the
content may differ, and still nothing else may happen. The script runs each
kind in a process of its own, so that a crash or a hang is seen as well.
"""

import argparse
import collections
import dataclasses
import faulthandler
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from data_files import make, parquet, png, write, write_tfds
from PIL import Image

from keras_resnet_cifar.data import readers
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.data.images import read_image
from keras_resnet_cifar.data.load import fingerprint, load_dataset
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.files import with_checksum, write_json
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.models.saving import load_model
from keras_resnet_cifar.models.torch_checkpoints import (
    load_torch_checkpoint,
    save_torch_checkpoint,
)
from keras_resnet_cifar.training import checkpointing
from keras_resnet_cifar.training.run_directory import RunDirectory

SECONDS = 60  # a case that takes longer hangs
EDGE = 1024  # bytes: heads and tails of files hold what steers a reader
REFUSED, SAME, DIFFERS = "refused", "same content", "other content"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file that the package reads.

    Attributes:
        make: Writes good files into an empty folder.
        read: Gives their content as a list of arrays, from the folder.
        blind: Why damage can pass unseen, if it can.
        needs: The library without which the kind cannot be read.
    """

    make: Callable
    read: Callable
    blind: str = ""
    needs: str = "numpy"


# --- What to damage, and where


def damages(folder, places, seed):
    """Yields (file, what was done, damaged content), two for each place.

    A file of the folder is drawn, and a place in it: a third of the places in
    its first bytes, a third in its last, a third anywhere. One bit is flipped
    there, and the file is cut off there.
    """
    rng = random.Random(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for _ in range(places):
        path = rng.choice(files)
        content = path.read_bytes()
        edge = min(EDGE, len(content))
        place = rng.choice(
            [
                rng.randrange(edge),
                len(content) - 1 - rng.randrange(edge),
                rng.randrange(len(content)),
            ]
        )
        bit = rng.randrange(8)
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        yield path, f"bit {bit} of byte {place} flipped", bytes(flipped)
        yield path, f"cut at byte {place}", content[:place]


def outcome(read, folder, expected):
    """Reads damaged files; an outcome of the three, or an `AssertionError`."""
    try:
        found = read(folder)
    except InputError as error:
        assert "\n" not in str(error), f"more than a line: {error}"
        assert str(folder) in str(error), f"names no file: {error}"
        return REFUSED
    except Exception as error:
        raise AssertionError(f"a traceback: {error!r}") from error
    return SAME if same(found, expected) else DIFFERS


def same(found, expected):
    """Whether two lists of arrays agree, to the bit."""

    def key(array):
        return array.shape, array.dtype, array.tobytes()

    return list(map(key, found)) == list(map(key, expected))


def fuzz(kind, folder, places, seed=0):
    """Damages the files of a kind, one place at a time.

    Yields:
        (what was done, the outcome), for each damage.

    Raises:
        AssertionError: An outcome that must not be.
    """
    kind.make(folder)
    expected = kind.read(folder)
    for path, done, damaged in damages(folder, places, seed):
        whole = path.read_bytes()
        path.write_bytes(damaged)
        done = f"{path.name}: {done}"
        try:
            found = outcome(kind.read, folder, expected)
            assert kind.blind or found != DIFFERS, "silently wrong content"
        except AssertionError as error:
            raise AssertionError(f"{done}: {error}") from error
        path.write_bytes(whole)
        yield done, found


# --- The kinds of files


SPLITS = {
    split: tuple(array[:count] for array in make("cifar10")[split])
    for split, count in (("train", 20), ("test", 10))
}
PRINTS = {s: (len(y), fingerprint(x, y)) for s, (x, y) in SPLITS.items()}


def read_dataset(folder, allow_unverified=False, **options):
    """The splits, of a `cifar10` whose published images are `SPLITS`."""
    info = dataclasses.replace(DATASETS["cifar10"], fingerprints=PRINTS)
    with mock.patch.dict(DATASETS, cifar10=info):
        data = load_dataset(
            "cifar10", folder, allow_unverified=allow_unverified, **options
        )
    found = [
        (split.images[order], split.labels[order])
        for split in (data.train, data.test)
        for order in [np.lexsort(split.images.reshape(len(split), -1).T)]
    ]  # in one order: tfds writes in another
    assert data.verified or allow_unverified
    return [array for pair in found for array in pair]


def write_layout(folder, number):
    write(folder, "cifar10", number, splits=SPLITS)


def write_archive(folder):
    layout = readers.LAYOUTS["cifar10"][0]
    with tempfile.TemporaryDirectory() as unpacked:
        write(Path(unpacked), "cifar10", 0, splits=SPLITS)
        with tarfile.open(folder / layout.archive, "w:gz") as tar:
            tar.add(Path(unpacked) / layout.folder, layout.folder)


def write_tfds_directory(folder):
    import tensorflow_datasets as tfds

    write_tfds(tfds, folder, "cifar10", SPLITS)


def write_parquet(folder):
    target = folder / "uoft-cs/cifar10/plain_text"
    target.mkdir(parents=True)
    for split, (images, labels) in SPLITS.items():
        content = parquet([png(image) for image in images], label=labels)
        (target / f"{split}-00000-of-00001.parquet").write_bytes(content)


def small_model():
    keras.utils.set_random_seed(0)
    return build_resnet(depth=8, widths=(4, 8, 16), normalization="shapes")


def parts(model):
    """The weights of a model, and its structure as bytes."""
    config = json.dumps(model.get_config(), sort_keys=True, default=str)
    return [*model.get_weights(), np.frombuffer(config.encode(), np.uint8)]


def write_keras(folder):
    small_model().save(folder / "net.keras")


def read_keras(folder):
    return parts(load_model(folder / "net.keras"))


def write_checkpoint(folder, name):
    save_torch_checkpoint(small_model(), folder / name, "akamaster")


def write_legacy_checkpoint(folder, name):
    import torch

    write_checkpoint(folder, name)
    tensors = torch.load(folder / name, weights_only=True)
    torch.save(tensors, folder / name, _use_new_zipfile_serialization=False)


def read_checkpoint(folder, name):
    return load_torch_checkpoint(folder / name).get_weights()


def small_config():
    return {
        "arch": "resnet8",
        "parameters": 1,
        "dataset": {"name": "shapes"},
        "recipe": {"epochs": 2, "learning_rate": 0.1},
        "seed": 1234,
        "precision": "float32",
        "request": {"name": "shapes", "validation": 5000},
        "backend": "tensorflow",
        "versions": {"keras": "3.15.1"},
    }


def write_config(folder):
    write_json(folder / "config.json", with_checksum(small_config()))


def read_config(folder):
    config = RunDirectory(folder).read_config()
    known = {key: config[key] for key in small_config()}
    return [np.array(json.dumps(known, sort_keys=True))]


BACKUP = checkpointing.Snapshot(
    run="this one",
    rows=[{"epoch": 1, "loss": 0.5}],
    variables=[np.arange(300, dtype="float32").reshape(3, 100), np.array(7)],
    metrics=[np.ones(2)],
)


def write_backup(folder):
    BACKUP.write(RunDirectory(folder))


def read_backup(folder):
    model = SimpleNamespace(metrics_variables=BACKUP.metrics)
    with mock.patch.object(
        checkpointing, "resumed_variables", lambda model: BACKUP.variables
    ):
        backup, fault = checkpointing.read_snapshot(
            RunDirectory(folder), model, BACKUP.run
        )
    assert fault is None  # there is no older one
    rows = np.array(json.dumps(backup.rows))
    return [rows, *backup.variables, *backup.metrics]


def write_image(folder, name, **options):
    image = Image.fromarray(SPLITS["train"][0][0]).resize((48, 40))
    image.save(folder / name, **options)


def read_one_image(folder, name):
    return [read_image(folder / name, (40, 48))]


def _datasets():
    """The layouts, each verified, and as `allow_unverified` reads it."""
    rows = {
        "python batches": (partial(write_layout, number=0), "a pickle", {}),
        "binary batches": (partial(write_layout, number=1), "raw bytes", {}),
        "npz": (partial(write_layout, number=2), "", {}),
        "tar.gz archive": (write_archive, "", {}),
        "tfds directory": (
            write_tfds_directory,
            "",
            {"needs": "tensorflow_datasets"},
        ),
        "parquet": (
            write_parquet,
            "labels and lengths have no checksum in these files",
            {"needs": "pyarrow"},
        ),
    }
    for name, (write_files, blind, options) in rows.items():
        source = {"source": "huggingface"} if name == "parquet" else {}
        read = partial(read_dataset, **source)
        yield name, Kind(write_files, read, **options)
        read = partial(read, allow_unverified=True)
        yield f"{name}, unverified", Kind(write_files, read, blind, **options)


def _checkpoint(name, write_file=write_checkpoint, **options):
    return Kind(
        partial(write_file, name=name),
        partial(read_checkpoint, name=name),
        **options,
    )


def _image(name, blind="", **options):
    return Kind(
        partial(write_image, name=name, **options),
        partial(read_one_image, name=name),
        blind,
    )


KINDS = {
    **dict(_datasets()),
    "keras": Kind(write_keras, read_keras),
    "torch": _checkpoint("net.pth", needs="torch"),
    "torch before 1.6": _checkpoint(
        "net.th",
        write_legacy_checkpoint,
        blind="its pickle and tensors have no checksum",
        needs="torch",
    ),
    "safetensors": _checkpoint(
        "net.safetensors",
        blind="the format has no checksum",
        needs="safetensors",
    ),
    "config.json": Kind(write_config, read_config),
    "backup": Kind(write_backup, read_backup),
    "PNG": _image("a.png"),
    "JPEG": _image("a.jpg", blind="the format has no checksum", quality=95),
}


# --- The long version


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--places", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS)
    args = parser.parse_args()
    if args.kind:
        _fuzz_one(args)
        return
    for name in KINDS:
        options = ["--places", args.places, "--seed", args.seed, "--kind", name]
        found = subprocess.run(
            [sys.executable, __file__, *map(str, options)],
            stdout=subprocess.PIPE,
            text=True,
        )
        lines = found.stdout.splitlines() or [f"{name}: nothing"]
        died = f" DIED with {found.returncode}" if found.returncode else ""
        print(lines[-1] + died, flush=True)


def _fuzz_one(args):
    kind = KINDS[args.kind]
    if importlib.util.find_spec(kind.needs) is None:
        print(f"{args.kind}: not tried, {kind.needs} is not installed")
        return
    counts, done = collections.Counter(), "the whole file"
    with tempfile.TemporaryDirectory() as folder:
        faulthandler.dump_traceback_later(10 * SECONDS, exit=True)
        for done, found in fuzz(kind, Path(folder), args.places, args.seed):
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            counts[found] += 1
            print(done, found, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sums = ", ".join(f"{counts[key]} {key}" for key in (REFUSED, SAME, DIFFERS))
    print(f"{args.kind}: {counts.total()} damages, {sums}; peak {peak} MiB")


if __name__ == "__main__":
    main()
