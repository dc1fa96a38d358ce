"""Damaged and malicious files: refused in one line, and nothing of them run.

`fuzz.py` has the kinds of files and how they are damaged; it is also the long
version, a script.
"""

import gzip
import importlib.util
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import tracemalloc
import zipfile
import zlib

import keras
import numpy as np
import pytest
from fuzz import KINDS, fuzz, write_archive, write_layout
from helpers import refusal
from PIL import Image

from keras_resnet_cifar import files
from keras_resnet_cifar.data import readers
from keras_resnet_cifar.data.images import read_image
from keras_resnet_cifar.models.saving import load_model
from keras_resnet_cifar.training.run_directory import RunDirectory


@pytest.mark.parametrize(
    "places", [5, pytest.param(15, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", KINDS)
def test_damage_is_refused_or_harmless(name, places, tmp_path):
    kind = KINDS[name]
    if importlib.util.find_spec(kind.needs) is None:
        pytest.skip(f"{kind.needs} is not installed")
    if kind.needs == "tensorflow_datasets":
        pytest.importorskip("tensorflow", reason="tfds reads with TensorFlow")
    assert len(list(fuzz(kind, tmp_path, places))) == 2 * places


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A folder to work in where importing `evil` leaves the file `ran`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\n")
    yield tmp_path
    assert "evil" not in sys.modules
    assert not (tmp_path / "ran").exists()


def read_cifar10(folder):
    _, read = next(readers.copies(folder, "cifar10"))
    return read()


# --- Python batches

TOUCH = b"(S'touch ran'\nt"
PICKLES = {
    "reduce": b"cposix\nsystem\n" + TOUCH + b"R.",
    "instance": b"(S'touch ran'\niposix\nsystem\n.",
    "object": b"(cposix\nsystem\nS'touch ran'\no.",
    "stack global": b"\x8c\x05posix\x8c\x06system\x93" + TOUCH + b"R.",
    "builtins": b'cbuiltins\neval\n(S\'open("ran", "w")\'\ntR.',
    "import": b"cevil\nanything\n.",
    "extension": b"\x82\x01.",
    "persistent": b"Pid\n.",
    "attribute": b"cnumpy\nndarray.tofile\n.",
    "code of a stand-in": b"c_codecs\nencode\n(N(dS'__code__'\nI1\nst"
    b"tb(S'a'\nS'b'\ntR.",
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_calls_nothing(name, evil):
    write_layout(evil, 0)
    (evil / "cifar-10-batches-py" / "data_batch_1").write_bytes(PICKLES[name])
    message = refusal(read_cifar10, evil)
    assert "data_batch_1: invalid python file" in message


NUMBERS = {
    "binary": lambda number: b"\x80\x02}r" + struct.pack("<I", number) + b".",
    "text": lambda number: b"}p%d\n." % number,
    "negative": lambda number: b"}p-%d\n." % number,
}


@pytest.mark.parametrize("number", [1 << 25, 1 << 31])
@pytest.mark.parametrize("form", NUMBERS)
def test_a_pickle_that_numbers_an_object_highly_fills_no_memory(
    form, number, tmp_path
):
    write_layout(tmp_path, 0)
    content = NUMBERS[form](number)
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(content)
    tracemalloc.start()
    assert "the pickle has no object" in refusal(read_cifar10, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The table of its numbers would be 512 MiB, for 2**31 32 GiB.
    assert peak < 1 << 25


class Forged:
    """An array whose pickle holds another state than NumPy would write."""

    def __init__(self, *state):
        self.state = state

    def __reduce__(self):
        reconstruct, arguments, _ = np.zeros(1, "u1").__reduce__()
        return reconstruct, arguments, self.state


U1, PIXELS = np.dtype("u1"), bytes(2 * 3072)
FORGED = {
    "pointers": Forged(1, (2, 384), np.dtype("O"), False, PIXELS),
    "fields": Forged(1, (2, 384), np.dtype([("a", "O")]), False, PIXELS),
    "objects": Forged(1, (2, 3072), U1, False, [None] * 2 * 3072),
    "a vast shape": Forged(1, (1 << 40, 3072), U1, False, PIXELS),
    "too few bytes": Forged(1, (2, 3072), U1, False, PIXELS[1:]),
    "no dtype": Forged(1, (2, 3072), None, False, PIXELS),
    "a short state": Forged(1, (2, 3072)),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_array(name, tmp_path):
    write_layout(tmp_path, 0)
    content = pickle.dumps({"data": FORGED[name], "labels": [1, 2]})
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(content)
    assert "invalid python file" in refusal(read_cifar10, tmp_path)


def test_a_dtype_whose_state_is_forged_stays_bytes(tmp_path):
    write_layout(tmp_path, 0)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    content = path.read_bytes()
    place = content.index(b"|")  # its byte order, in the state of the dtype
    path.write_bytes(content[:place] + b">" + content[place + 1 :])
    images, _ = read_cifar10(tmp_path)["train"]
    assert images.dtype == np.dtype("u1")


def test_labels_that_would_grow_beyond_bounds(tmp_path):
    write_layout(tmp_path, 0)
    labels = [[0] * 1000] * 1000  # a million in 4 kB, and more by each level
    content = pickle.dumps(
        {"data": np.zeros((4, 3072), "u1"), "labels": labels}
    )
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(content)
    assert "labels are nested" in refusal(read_cifar10, tmp_path)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    write_layout(tmp_path, 1)
    place = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    place.unlink()
    os.mkfifo(place)
    assert "data_batch_2.bin is missing" in refusal(read_cifar10, tmp_path)
    os.mkfifo(tmp_path / "a.png")
    assert "not a file" in refusal(read_image, tmp_path / "a.png", (32, 32))


# --- Archives and bombs


def member(name, kind=tarfile.REGTYPE, target=""):
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, target
    return found


BATCH = "cifar-10-batches-py/data_batch_1"
MEMBERS = {
    "parent": member("../ran"),
    "parent below": member("cifar-10-batches-py/../../ran"),
    "absolute": member("/tmp/ran"),
    "symbolic link": member(BATCH, tarfile.SYMTYPE, "/etc/passwd"),
    "link to itself": member(BATCH, tarfile.SYMTYPE, "data_batch_1"),
    "hard link": member(BATCH, tarfile.LNKTYPE, "../../etc/passwd"),
    "device": member(BATCH, tarfile.CHRTYPE),
    "pipe": member(BATCH, tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_an_archive_holds_plain_files_within_itself(name, tmp_path):
    write_archive(tmp_path)
    (path,) = tmp_path.iterdir()
    content = gzip.decompress(path.read_bytes())
    with tarfile.open(fileobj=(file := io.BytesIO(content)), mode="a:") as tar:
        tar.addfile(MEMBERS[name])
    path.write_bytes(gzip.compress(file.getvalue()))
    assert "tar.gz: invalid tar archive (refused: " in refusal(
        read_cifar10, tmp_path
    )
    assert os.listdir(tmp_path) == [path.name]


def test_files_that_are_too_large_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MOST_BYTES", 10_000)
    with open(tmp_path / "data_batch_1.bin", "wb") as file:
        file.truncate(1 << 40)  # a terabyte that takes no space
    assert "refused: it holds 1,099,511" in refusal(read_cifar10, tmp_path)
    os.remove(tmp_path / "data_batch_1.bin")

    (tmp_path / "cifar-10-python.tar.gz").write_bytes(
        gzip.compress(bytes(1 << 20))
    )
    assert "refused: it holds 10,001" in refusal(read_cifar10, tmp_path)
    os.remove(tmp_path / "cifar-10-python.tar.gz")

    zeros = np.zeros((20, 32, 32, 3), np.uint8)
    np.savez_compressed(tmp_path / "train.npz", x=zeros, y=np.zeros(20, int))
    assert "refused: it holds 61," in refusal(read_cifar10, tmp_path)


def test_a_zip_bomb(tmp_path, monkeypatch):
    with zipfile.ZipFile(
        tmp_path / "a.keras", "w", zipfile.ZIP_DEFLATED
    ) as file:
        file.writestr("model.weights.h5", bytes(1 << 20))
    files.check_zip(tmp_path / "a.keras")
    monkeypatch.setattr(files, "_HARMLESS", 1 << 19)
    message = refusal(load_model, tmp_path / "a.keras")
    assert "refused: it decompresses to 1,048,576 bytes" in message


def png_that_claims(side):
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    content = file.getvalue()
    header = b"IHDR" + struct.pack(">II", side, side) + content[24:29]
    checksum = struct.pack(">I", zlib.crc32(header))
    return content[:12] + header + checksum + content[33:]


@pytest.mark.parametrize("side", [10_000, 100_000])
def test_an_image_bomb(side, tmp_path):
    (tmp_path / "a.png").write_bytes(png_that_claims(side))
    message = refusal(read_image, tmp_path / "a.png", (32, 32))
    assert "decompression bomb" in message


def test_an_image_that_other_programs_would_draw(tmp_path):
    head = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n"
    (tmp_path / "a.png").write_text(head + "(ran) (w) file closefile\n%%EOF\n")
    message = refusal(read_image, tmp_path / "a.png", (32, 32))
    assert "cannot identify image file" in message


# --- tfds


def features(name):
    return {"features": {"image": {"pythonClassName": name, "image": {}}}}


def nested_in_text(name):
    text = json.dumps({"x": {"type": name, "content": {}}})
    return {"json": {"json": text}}


FEATURES = {
    "class": {"pythonClassName": "evil.Image", "image": {}},
    "class in snake case": {"python_class_name": "evil.Image", "image": {}},
    "class in the old form": {"type": "evil.Image", "content": {}},
    "class within": {"featuresDict": features("evil.Image")},
    "class in a string": nested_in_text("evil.Image"),
}


@pytest.mark.parametrize("name", FEATURES)
def test_tfds_imports_nothing_that_a_dataset_names(name, evil):
    pytest.importorskip("tensorflow", reason="tfds reads with TensorFlow")
    pytest.importorskip("tensorflow_datasets", reason="needs tfds")
    known = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    version = evil / "cifar10" / "3.0.2"
    version.mkdir(parents=True)
    info = {"name": "cifar10", "version": "3.0.2", "fileFormat": "tfrecord"}
    (version / "dataset_info.json").write_text(json.dumps(info))
    content = {"pythonClassName": known} | FEATURES[name]
    (version / "features.json").write_text(json.dumps(content))
    assert "refused: features.json asks for" in refusal(read_cifar10, evil)


# --- .keras files


def foreign(module, name, kind="class"):
    if kind == "function":
        return {
            "module": module,
            "class_name": "function",
            "config": name,
            "registered_name": name,
        }
    return {
        "module": module,
        "class_name": name,
        "config": {"name": "x"},
        "registered_name": None,
    }


LAYERS = {
    "a class of a module": foreign("evil", "Layer"),
    "a class of the system": foreign("os", "system"),
    "a class of Keras's insides": foreign("keras.src.utils.file_utils", "File"),
    "a function of Keras that is no layer": foreign("keras.utils", "get_file"),
    "unsafe mode": foreign("keras.config", "enable_unsafe_deserialization"),
    "a class registered elsewhere": foreign(None, "x")
    | {"registered_name": "evil>Layer"},
    "an activation of the system": foreign("keras.layers", "Activation")
    | {"config": {"activation": foreign("os", "system", "function")}},
    "a SavedModel": foreign("keras.layers", "TFSMLayer")
    | {"config": {"filepath": "evil"}},
}


def rewritten(path, change):
    """Rewrites config.json in a .keras file."""
    with zipfile.ZipFile(path) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    config = json.loads(contents["config.json"])
    change(config)
    contents["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as file:
        for name, content in contents.items():
            file.writestr(name, content)


@pytest.fixture
def model_file(tiny_model, evil):
    path = evil / "net.keras"
    tiny_model().save(path)
    return path


@pytest.mark.parametrize("name", LAYERS)
def test_a_keras_file_with_foreign_classes(name, model_file):
    def change(config):
        layer = config["config"]["layers"][-1]
        layer.update(LAYERS[name])

    rewritten(model_file, change)
    assert f"cannot load {model_file}: " in refusal(load_model, model_file)


def test_a_keras_file_with_a_lambda(model_file):
    inputs = keras.Input((32, 32, 3))
    flat = keras.layers.Lambda(
        lambda x: (open("ran", "w").close(), x[:, 0, 0])[1]
    )(inputs)
    keras.Model(inputs, flat).save(model_file)
    os.remove("ran")  # of building it here
    assert f"cannot load {model_file}: " in refusal(load_model, model_file)


# --- config.json


def test_a_changed_config_is_refused(tmp_path):
    KINDS["config.json"].make(tmp_path)
    run = RunDirectory(tmp_path)
    text = run.config.read_text()
    assert run.read_config()["seed"] == 1234
    run.config.write_text(text.replace("1234", "1235"))
    assert "does not match its sha256" in refusal(run.read_config)
    lines = text.replace("1234", "1235").splitlines()
    del lines[-2]  # the seal: the change is meant
    lines[-2] = lines[-2].rstrip(",")
    run.config.write_text("\n".join(lines))
    assert run.read_config()["seed"] == 1235


def test_a_config_without_a_floor(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert "cannot read" in refusal(RunDirectory(tmp_path).read_config)


# --- The payloads above would do harm if pickle itself read them


def test_the_payloads_do_harm_where_pickle_reads_them(evil, monkeypatch):
    pickle.loads(PICKLES["reduce"])
    assert (evil / "ran").exists()
    os.remove(evil / "ran")
