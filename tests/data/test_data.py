"""Datasets, their layouts on disk, bad files, verification, validation."""

import io
import os
import pickle
import struct
import sys
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from data_files import SIZES, batches, make, planar, write, write_tfds
from helpers import refusal

from keras_resnet_cifar.data import load as data
from keras_resnet_cifar.data import readers, shapes, tfds
from keras_resnet_cifar.data.datasets import DATASETS, FINE_TO_COARSE
from keras_resnet_cifar.data.load import fingerprint, load_dataset
from keras_resnet_cifar.errors import InputError

REAL = os.environ.get(data.DATA_VARIABLE)
FAMILIES = ("cifar10", "cifar100")


@pytest.fixture(autouse=True)
def nothing_on_this_machine(monkeypatch, tmp_path):
    """No dataset of the user, and no network, can be found by a test."""
    home = tmp_path / "home"
    home.mkdir()
    for name in (data.DATA_VARIABLE, "TFDS_DATA_DIR", "KERAS_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    # urllib remembers the proxies of its first call.
    monkeypatch.setattr("urllib.request._opener", None)


def read(root, family, layout=""):
    """The first copy of a layout."""
    for description, read_copy in readers.copies(root, family):
        if description.startswith(layout):
            return read_copy()
    return None


def assert_same(found, splits):
    for split, (images, labels) in splits.items():
        np.testing.assert_array_equal(found[split][0], images)
        np.testing.assert_array_equal(found[split][1], labels)
        assert [a.dtype for a in found[split]] == [np.uint8, np.uint8]
        assert found[split][0].flags.c_contiguous


# --- The table


def test_table_of_datasets():
    assert [(n, info.num_classes) for n, info in DATASETS.items()] == [
        ("shapes", 10),
        ("cifar10", 10),
        ("cifar100", 100),
        ("cifar100-coarse", 20),
    ]
    for name, info in DATASETS.items():
        assert info.name == name
        assert len(set(info.class_names)) == info.num_classes


def test_each_coarse_class_has_five_fine_ones():
    assert np.bincount(FINE_TO_COARSE).tolist() == [5] * 20
    fine, coarse = (
        DATASETS[name].class_names for name in ("cifar100", "cifar100-coarse")
    )
    for name, group in (
        ("apple", "fruit_and_vegetables"),
        ("beaver", "aquatic_mammals"),
        ("rocket", "vehicles_2"),
        ("worm", "non-insect_invertebrates"),
    ):
        assert coarse[FINE_TO_COARSE[fine.index(name)]] == group


# --- Layouts on disk


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "bare"])
@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_layout(tmp_path, family, kind, nested):
    splits, _ = write(tmp_path, family, kind, nested)
    assert_same(read(tmp_path, family), splits)


@pytest.mark.parametrize("kind", [0, 1], ids=["python", "binary"])
@pytest.mark.parametrize("family", FAMILIES)
def test_archive_is_read_in_place(tmp_path, family, kind):
    splits, folder = write(tmp_path / "unpacked", family, kind)
    layout = readers.LAYOUTS[family][kind]
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / layout.archive, "w:gz") as tar:
        tar.add(folder, layout.folder)
    assert_same(read(tmp_path / "packed", family), splits)
    assert os.listdir(tmp_path / "packed") == [layout.archive]


@pytest.mark.parametrize("family", FAMILIES)
def test_tfds_directory(tmp_path, family):
    pytest.importorskip("tensorflow", reason="tfds reads with TensorFlow")
    tfds = pytest.importorskip(
        "tensorflow_datasets", reason="needs tensorflow-datasets"
    )
    splits = make(family)
    write_tfds(tfds, tmp_path, family, splits)
    folder = tmp_path / family / "3.0.2"
    for root in (tmp_path, tmp_path / family, folder):
        found = read(root, family)
        for split in splits:  # tfds writes in an order of its own
            assert fingerprint(*found[split]) == fingerprint(*splits[split])
    next(folder.glob("*train*")).write_bytes(b"junk")
    with pytest.raises(InputError, match=r"3\.0\.2: .* cannot read it"):
        read(tmp_path, family)


def test_tfds_directory_without_tfds(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    version = tmp_path / "cifar10" / "3.0.2"
    version.mkdir(parents=True)
    (version / "dataset_info.json").touch()
    with pytest.raises(InputError, match="needs tensorflow-datasets"):
        read(tmp_path, "cifar10")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(tmp_path, protocol):
    splits, _ = write(tmp_path, "cifar10", protocol=protocol)
    assert_same(read(tmp_path, "cifar10"), splits)


def python2_pickle(images, labels):
    """What Python 2 wrote, as the official batches are: str, and numpy.core."""
    content = planar(images).tobytes()
    shape = b"(I%d\nI3072\nt" % len(images)
    return b"".join(
        [
            b"(dS'data'\ncnumpy.core.multiarray\n_reconstruct\n",
            b"(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n" + shape,
            b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb",
            b"I00\nT" + struct.pack("<i", len(content)) + content + b"tbs",
            b"S'labels'\n(l" + b"".join(b"I%d\na" % y for y in labels) + b"s.",
        ]
    )


def test_pickles_of_python_2(tmp_path):
    splits, folder = write(tmp_path, "cifar10")
    layout = readers.LAYOUTS["cifar10"][0]
    for name, x, y in batches(layout, splits):
        (folder / name).write_bytes(python2_pickle(x, y))
    assert_same(read(tmp_path, "cifar10"), splits)


def test_layouts_side_by_side(tmp_path):
    for kind in range(3):
        splits, _ = write(tmp_path, "cifar10", kind)
    for layout in ("python", "binary", "npz"):
        assert_same(read(tmp_path, "cifar10", layout), splits)
    assert read(tmp_path, "cifar10", "tfds") is None


# --- Bad files: each is refused in one line that names the file


class Malice:
    def __reduce__(self):
        return os.system, ("touch ran",)


def batch(**changes):
    """A pickled batch of two images, with changes."""
    rows = np.zeros((2, 3072), np.uint8)
    return pickle.dumps({"data": rows, "labels": [1, 2]} | changes)


def npz(**arrays):
    file = io.BytesIO()
    good = {"x": np.zeros((2, 32, 32, 3), np.uint8), "y": np.array([1, 2])}
    np.savez(file, **(good | arrays))
    return file.getvalue()


PY, BIN, NPZ = "data_batch_3", "data_batch_3.bin", "train.npz"
WIDE = np.zeros((2, 64, 64, 3), np.uint8)
BAD_FILES = {
    "missing batch": (0, PY, None, "is missing"),
    "missing test": (1, "test_batch.bin", None, "is missing"),
    "missing npz": (2, "test.npz", None, "is missing"),
    "empty pickle": (0, PY, b"", "invalid python file"),
    "truncated pickle": (0, PY, batch()[:3000], "invalid python file"),
    "no pickle": (0, PY, b"<html>", "invalid python file"),
    "pickle of a list": (0, PY, pickle.dumps([1]), "invalid python file"),
    "malice": (0, PY, batch(x=Malice()), "refused: .* asks for posix.system"),
    "a class": (0, PY, batch(x=Path), "refused: .*pathlib"),
    "objects": (0, PY, batch(data=np.array([{}])), "dtype 'O8'"),
    "floats": (0, PY, batch(data=np.zeros((2, 3072))), "dtype 'f8'"),
    "no labels": (0, PY, pickle.dumps({"data": 1}), "invalid python file"),
    "narrow": (0, PY, batch(data=np.zeros((2, 9), "u1")), "invalid python"),
    "halves": (0, PY, batch(data=np.zeros((2, 1536), "u1")), "1 images but 2"),
    "labels short": (0, PY, batch(labels=[1]), "2 images but 1 labels"),
    "label 10": (0, PY, batch(labels=[1, 10]), r"label 10 is not in 0\.\.9"),
    "label -1": (0, PY, batch(labels=[1, -1]), r"label -1 is not in 0\.\.9"),
    "label text": (0, PY, batch(labels=["a", "b"]), "labels are <U1"),
    "label ragged": (0, PY, batch(labels=[1, [2]]), "invalid python file"),
    "empty binary": (1, BIN, b"", "0 images"),
    "truncated binary": (
        1,
        BIN,
        bytes(5000),
        "5000 bytes are not a whole number",
    ),
    "binary label": (1, BIN, b"\xff" + bytes(3072), "label 255"),
    "no zip": (2, NPZ, b"junk", "invalid npz file"),
    "truncated npz": (2, NPZ, npz()[:-100], "invalid npz file"),
    "broken npz": (
        2,
        NPZ,
        npz().replace(b"\0" * 99, b"\1" * 99),
        "invalid npz file",
    ),
    "npz of objects": (2, NPZ, npz(y=np.array([{}, {}])), "invalid npz file"),
    "npz without y": (2, NPZ, npz(x_train=1, x=1)[:0], "invalid npz file"),
    "npz of floats": (2, NPZ, npz(x=np.zeros((2, 32, 32, 3))), "are float64"),
    "npz too wide": (2, NPZ, npz(x=WIDE), r"uint8 \[2, 64, 64, 3\], not"),
    "npz of one-hot": (2, NPZ, npz(y=np.eye(2)), "labels are float64"),
    "npz of a scalar": (2, NPZ, npz(x=np.uint8(0)), r"images are uint8 \[\]"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(tmp_path, monkeypatch, case):
    kind, name, content, message = BAD_FILES[case]
    _, folder = write(tmp_path / "data", "cifar10", kind)
    monkeypatch.chdir(tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_dataset("cifar10", tmp_path / "data")
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda archive: b"junk", "invalid tar archive"),
        (lambda archive: b"", "invalid tar archive"),
        (lambda archive: archive[: len(archive) // 2], "invalid tar"),
        (lambda archive: empty_tar(), "data_batch_1 is missing"),
    ],
)
def test_bad_archive(tmp_path, damage, message):
    _, folder = write(tmp_path / "unpacked", "cifar10")
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(InputError, match=f"cifar-10-python.tar.gz.*{message}"):
        load_dataset("cifar10", tmp_path)


def empty_tar():
    file = io.BytesIO()
    tarfile.open(fileobj=file, mode="w:gz").close()
    return file.getvalue()


# --- Where it looks


def test_unknown_names(tmp_path):
    with pytest.raises(InputError, match=r"unknown dataset 'cifar11'.*cifar10"):
        load_dataset("cifar11")
    with pytest.raises(InputError, match=r"unknown source 'hf'.*huggingface"):
        load_dataset("cifar10", source="hf")


@pytest.mark.parametrize("by_variable", [False, True])
@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("missing", "missing does not exist"),
        ("file", "file is not a folder"),
        ("empty", r"no cifar10 in .*empty: looked for cifar-10-batches-py/"),
        ("other", r"no cifar10 in .*other: looked for .*test|tfds"),
    ],
)
def test_bad_folder(tmp_path, monkeypatch, folder, message, by_variable):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    write(tmp_path / "other", "cifar100", 1)
    folder = tmp_path / folder
    if by_variable:
        monkeypatch.setenv(data.DATA_VARIABLE, str(folder))
        folder = None
    with pytest.raises(InputError, match=message) as caught:
        load_dataset("cifar10", folder)
    assert "data_dir=" in str(caught.value)


@pytest.mark.parametrize(
    ("root", "nested"),
    [
        (".keras/datasets", True),
        (".keras/datasets/cifar-10-batches-py-target", True),
        ("data", True),
    ],
)
def test_copies_of_keras_and_torchvision(tmp_path, root, nested):
    splits, folder = write(tmp_path / "home" / root, "cifar10", nested=nested)
    found = load_dataset("cifar10", source="disk", allow_unverified=True)
    np.testing.assert_array_equal(found.test.images, splits["test"][0])
    assert folder.name in found.source


def test_files_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "home" / "data").mkdir()
    (tmp_path / "home" / "data" / "train.npz").touch()
    with pytest.raises(InputError, match=r"no cifar10 in .*datasets, .*data,"):
        load_dataset("cifar10", source="disk")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "~/tfds")
    assert tfds.home() == tmp_path / "home" / "tfds"
    write(tmp_path / "home" / "copies", "cifar10")
    found = load_dataset("cifar10", "~/copies", allow_unverified=True)
    assert found.request["data_dir"] == str(tmp_path / "home" / "copies")


@pytest.mark.parametrize(
    "arguments", [{"data_dir": "copies"}, {"source": "disk"}]
)
def test_what_has_one_source_takes_no_other(arguments, tmp_path):
    for name in ("shapes", str(tmp_path)):
        message = refusal(partial(load_dataset, name, **arguments))
        assert name in message
        assert f"omit {next(iter(arguments))}=" in message


def test_no_network():
    pytest.importorskip("tensorflow", reason="tfds needs TensorFlow")
    pytest.importorskip("tensorflow_datasets", reason="needs tfds")
    with pytest.raises(InputError, match="Connection refused") as caught:
        load_dataset("cifar10")
    for part in (".keras/datasets", "data_dir=", "source='huggingface'"):
        assert part in str(caught.value)


def test_no_tfds(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(
        InputError, match=r"needs tensorflow-datasets.*data_dir="
    ):
        load_dataset("cifar10")


def test_shapes_are_drawn_from_two_seeds(monkeypatch):
    def draw(count, seed):
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        return images, (np.arange(count) % 10).astype(np.uint8)

    monkeypatch.setattr(shapes, "draw", draw)
    found = load_dataset("shapes", validation=0.1, seed=3)
    assert [len(s) for s in (found.train, found.validation, found.test)] == [
        9_000,
        1_000,
        2_000,
    ]
    assert found.fingerprints == {
        "train": fingerprint(*draw(10_000, 0)),
        "test": fingerprint(*draw(2_000, 1)),
    }
    assert found.verified
    assert found.class_names == DATASETS["shapes"].class_names


# --- Verification


def test_fingerprint_ignores_order_only():
    images, labels = make("cifar10")["train"]
    expected = fingerprint(images, labels)
    order = np.random.default_rng(1).permutation(len(labels))
    assert fingerprint(images[order], labels[order]) == expected
    assert fingerprint(images, labels[order]) != expected
    images[50, 3, 4, 1] ^= 1
    assert fingerprint(images, labels) != expected


def test_verification(tmp_path, monkeypatch):
    splits, _ = write(tmp_path, "cifar10")
    with pytest.raises(InputError, match="allow_unverified=True") as caught:
        load_dataset("cifar10", tmp_path)
    for part in ("train (100 images found, 50,000 expected", "test (20 images"):
        assert part in str(caught.value)
    assert not load_dataset("cifar10", tmp_path, allow_unverified=True).verified

    prints = {s: (SIZES[s], fingerprint(*splits[s])) for s in SIZES}
    info = replace(DATASETS["cifar10"], fingerprints=prints)
    monkeypatch.setitem(DATASETS, "cifar10", info)
    found = load_dataset("cifar10", tmp_path, validation=10)
    assert found.verified
    assert found.fingerprints == {s: p for s, (_, p) in prints.items()}


def test_coarse_labels(tmp_path):
    splits, _ = write(tmp_path, "cifar100")
    fine, coarse = (
        load_dataset(name, tmp_path, validation=20, allow_unverified=True)
        for name in ("cifar100", "cifar100-coarse")
    )
    assert (fine.num_classes, coarse.num_classes) == (100, 20)
    assert fine.fingerprints == coarse.fingerprints
    np.testing.assert_array_equal(
        fine.validation.images, coarse.validation.images
    )
    np.testing.assert_array_equal(
        coarse.test.labels, np.array(FINE_TO_COARSE)[splits["test"][1]]
    )
    assert coarse.train.labels.dtype == np.uint8


# --- The validation split


@pytest.mark.parametrize("validation", [1, 13, 20, 99, 0.25, np.int64(7)])
def test_validation_split(tmp_path, validation):
    splits, _ = write(tmp_path, "cifar10")
    found = load_dataset("cifar10", tmp_path, validation, allow_unverified=True)
    count = 25 if validation == 0.25 else validation
    assert (len(found.validation), len(found.train)) == (count, 100 - count)
    # Disjoint and together the whole train split: the same 100 images.
    images = [found.train.images, found.validation.images]
    labels = [found.train.labels, found.validation.labels]
    assert fingerprint(np.concatenate(images), np.concatenate(labels)) == (
        fingerprint(*splits["train"])
    )
    # Stratified: the classes are equal, so are their shares, to an image.
    shares = np.bincount(found.validation.labels, minlength=10)
    assert shares.max() - shares.min() <= 1


def test_validation_split_follows_uneven_classes(tmp_path):
    splits = make("cifar10")
    splits["train"][1][:] = np.repeat([0, 1, 2], [60, 30, 10])
    write(tmp_path, "cifar10", splits=splits)
    found = load_dataset("cifar10", tmp_path, 20, allow_unverified=True)
    assert np.bincount(found.validation.labels).tolist() == [12, 6, 2]


def test_validation_split_depends_on_the_seed_and_on_no_file_order(tmp_path):
    splits = make("cifar10")
    order = np.random.default_rng(5).permutation(100)
    shuffled = splits | {"train": tuple(a[order] for a in splits["train"])}
    write(tmp_path / "a", "cifar10", 0, splits=splits)
    write(tmp_path / "b", "cifar10", 1, splits=shuffled)

    def held_out(folder, seed):
        split = load_dataset(
            "cifar10", tmp_path / folder, 30, seed, allow_unverified=True
        ).validation
        return fingerprint(split.images, split.labels)

    assert held_out("a", 0) == held_out("b", 0) != held_out("a", 1)


def test_no_validation_split(tmp_path):
    write(tmp_path, "cifar10")
    found = load_dataset("cifar10", tmp_path, allow_unverified=True)
    assert found.validation is None
    assert len(found.train) == 100


@pytest.mark.parametrize(
    "validation", [-1, 100, 5000, 1.0, 1.5, -0.1, 0.001, 0.999, float("nan")]
)
def test_bad_validation(tmp_path, validation):
    write(tmp_path, "cifar10")
    with pytest.raises(InputError, match=f"validation={validation} does not"):
        load_dataset("cifar10", tmp_path, validation, allow_unverified=True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"validation": "10%"}, "validation='10%': give a count or a"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
        ({"seed": "a"}, "seed='a': give a whole number"),
    ],
)
def test_numbers_that_are_none(arguments, text):
    with pytest.raises(InputError, match=text):
        load_dataset("shapes", **arguments)


# --- The real images


@pytest.mark.skipif(not REAL, reason=f"{data.DATA_VARIABLE} is not set")
@pytest.mark.parametrize("layout", ["python", "binary", "npz", "tfds"])
@pytest.mark.parametrize("family", FAMILIES)
def test_real_images(family, layout):
    if layout == "tfds":
        pytest.importorskip("tensorflow", reason="tfds needs TensorFlow")
    splits = read(Path(REAL), family, layout)
    if not splits:
        pytest.skip(f"no {layout} layout of {family} in {data.DATA_VARIABLE}")
    info = DATASETS[family]
    for split, (count, expected) in info.fingerprints.items():
        images, labels = splits[split]
        assert len(images) == len(labels)
        if len(images) == count:
            assert fingerprint(images, labels) == expected
    images, labels = splits["train"]
    assert set(np.unique(labels)) == set(range(info.num_classes))
    # Published to four digits over all 50,000; a part of them is further off.
    tolerance = 6e-5 if len(images) == 50_000 else 1e-3
    for channel in range(3):
        pixels = images[..., channel] / np.float32(255)
        assert pixels.mean(dtype="float64") == pytest.approx(
            info.mean[channel], abs=tolerance
        )
        assert pixels.std(dtype="float64") == pytest.approx(
            info.std[channel], abs=tolerance
        )
