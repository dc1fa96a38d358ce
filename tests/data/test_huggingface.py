"""`source="huggingface"`, against a server on this machine."""

import errno
import os
import socket
import threading
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from data_files import parquet, png
from helpers import serve

from keras_resnet_cifar.data import downloads, huggingface
from keras_resnet_cifar.data.datasets import FINE_TO_COARSE
from keras_resnet_cifar.data.load import load_dataset
from keras_resnet_cifar.errors import InputError

pytest.importorskip("pyarrow", reason="parquet files need pyarrow")


def pixels(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8)


TRAIN, TEST = pixels(30, 1), pixels(20, 2)


def files():
    """{path at the host: content} of both repositories, whole."""
    found = {}
    for split, images in (("train", TRAIN), ("test", TEST)):
        pngs = [png(image) for image in images]
        labels = np.arange(len(images))
        name = f"{split}-00000-of-00001.parquet"
        root = "/datasets/uoft-cs/{}/resolve/main/{}/" + name
        found[root.format("cifar10", "plain_text")] = parquet(
            pngs, label=labels % 10
        )
        found[root.format("cifar100", "cifar100")] = parquet(
            pngs,
            fine_label=labels,
            coarse_label=np.array(FINE_TO_COARSE)[labels],
        )
    return found


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A stand-in for the Hub.

    Attributes: `files` to serve, the paths `requested` so far, how many bytes
    to `cut` off, an event to `wait` for.
    """
    state = SimpleNamespace(
        files=files(), requested=[], cut=0, wait=None, cache=tmp_path
    )

    def answer(method, path, body):
        state.requested.append(path)
        content = state.files.get(path)
        if content is None:
            return 404, {}, b""
        if state.wait:
            state.wait.wait()
        whole = {"Content-Length": len(content)}
        return 200, whole, content[: len(content) - state.cut]

    with serve(answer) as address:
        monkeypatch.setenv("HF_ENDPOINT", f"{address}/")
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield state


def load(name="cifar10", **kwargs):
    return load_dataset(
        name, source="huggingface", allow_unverified=True, **kwargs
    )


def cached(host):
    return [path for path in host.cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("cifar10", np.arange(20) % 10),
        ("cifar100", np.arange(20)),
        ("cifar100-coarse", np.array(FINE_TO_COARSE)[:20]),
    ],
)
def test_load(host, name, labels):
    found = load(name)
    np.testing.assert_array_equal(found.train.images, TRAIN)
    np.testing.assert_array_equal(found.test.images, TEST)
    np.testing.assert_array_equal(found.test.labels, labels)
    assert found.test.labels.dtype == found.test.images.dtype == np.uint8
    assert "huggingface" in found.source


def test_downloads_once(host):
    load()
    assert len(host.requested) == len(cached(host)) == 2
    load()
    assert len(host.requested) == 2


def test_data_dir_is_the_cache(host, tmp_path):
    load(data_dir=tmp_path / "here")
    assert all(tmp_path / "here" in path.parents for path in cached(host))


def cut(host):
    host.cut = 100


def forget(host):
    host.files.clear()


def serve_a_page(host):
    host.files = dict.fromkeys(host.files, b"<html>Sign in</html>")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (cut, r"got only \d+ out of \d+ bytes"),
        (forget, "404 -- Not Found"),
        (serve_a_page, "Parquet magic bytes not found"),
    ],
)
def test_failed_download_leaves_nothing(host, fault, message):
    fault(host)
    with pytest.raises(InputError, match=f"http://127.*{message}.*data_dir="):
        load()
    assert cached(host) == []


def test_a_host_that_sends_nothing_is_given_up(host, monkeypatch):
    host.wait = threading.Event()
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    try:
        with pytest.raises(InputError, match=r"cannot download .*timed out"):
            load()
    finally:
        host.wait.set()
    assert cached(host) == []
    assert socket.getdefaulttimeout() is None


def test_progress_stays_out_of_the_results(host, capsys):
    load()
    assert capsys.readouterr().out == ""


def test_a_full_disk_leaves_nothing(host, monkeypatch):
    def refuse(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match=r"cannot write .*No space left"):
        load()
    assert cached(host) == []


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("http://127.0.0.1:9", "Connection refused"),
        ("nowhere", "unknown url type"),
    ],
)
def test_no_host(monkeypatch, tmp_path, endpoint, message):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(InputError, match=f"{message}.*HF_ENDPOINT") as caught:
        load(data_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_cache_that_cannot_be_made(host, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/uoft-cs.*Not a directory"):
        load(data_dir=tmp_path / "file")


def huge(side):
    """A small PNG whose header promises side x side pixels."""
    content = png(SMALL)
    header = b"IHDR" + side.to_bytes(4) * 2 + content[24:29]
    checksum = zlib.crc32(header).to_bytes(4)
    return content[:12] + header + checksum + content[33:]


SMALL, WIDE = pixels(1)[0], np.zeros((64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Arrow"),
        (b"PAR1 junk PAR1", "Arrow"),
        (parquet([png(SMALL)], fine_label=[1]), "label"),
        (parquet([png(SMALL)], label=[10]), r"label 10 is not in 0\.\.9"),
        (parquet([png(SMALL)], label=[None]), "with 1 nulls"),
        (parquet([b"junk"], label=[1]), "UnidentifiedImageError"),
        (parquet([None], label=[1]), "not the parquet file"),
        (parquet([png(SMALL)[:-60]], label=[1]), "not the parquet file"),
        (parquet([png(WIDE)], label=[1]), r"an image is RGB \(64, 64\)"),
        (parquet([huge(9_000)], label=[1]), r"an image is RGB \(9000, 9000"),
        (parquet([huge(50_000)], label=[1]), "DecompressionBombError"),
        (parquet([png(SMALL, "L")], label=[1]), "an image is L"),
        (parquet([png(SMALL, kind="BMP")], label=[1]), "UnidentifiedImage"),
        (parquet([], label=[]), "not the parquet file"),
    ],
)
def test_bad_cached_file(tmp_path, content, message):
    path = tmp_path / "train.parquet"
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=rf"train\.parquet: .*{message}.*delete it"
    ):
        huggingface.read_parquet(path, "cifar10", "label")
