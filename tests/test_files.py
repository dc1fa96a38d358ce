"""Files are whole or not there; a refusal of the system is one line."""

import errno
import json
import os

import numpy as np
import pytest
from helpers import refusal

from keras_resnet_cifar import files
from keras_resnet_cifar.errors import InputError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "name", ["best.keras", "model.weights.h5", "a.png", "plain"]
)
def test_temporary_lies_beside_the_target_with_its_suffix(tmp_path, name):
    with files.atomic_write(tmp_path / name) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name != name
        assert temporary.name.endswith(name)
        assert not temporary.exists()
        temporary.write_bytes(b"new")
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_the_older_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "best.keras"
    target.write_text("old")
    with pytest.raises(error), files.atomic_write(str(target)) as temporary:
        temporary.write_text("half")
        raise error
    assert names(tmp_path) == ["best.keras"]
    assert target.read_text() == "old"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_disk_full_is_one_line_that_names_the_path(tmp_path, monkeypatch, step):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, refuse)
    target = tmp_path / "a.txt"
    with pytest.raises(InputError) as caught:
        files.write_text(target, "text")
    assert str(caught.value).startswith(f"cannot write {target}: No space left")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "where", ["absent/a.txt", "file/a.txt", "folder"], ids=str
)
def test_place_that_cannot_hold_a_file(tmp_path, where):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=f"cannot write {tmp_path / where}: "):
        files.write_text(tmp_path / where, "text")
    assert names(tmp_path) == ["file", "folder"]


def test_text_is_utf8_with_plain_newlines(tmp_path):
    files.write_text(tmp_path / "a.txt", "a → b\n")
    assert (tmp_path / "a.txt").read_bytes() == "a → b\n".encode()


@pytest.mark.parametrize(
    "value, expected",
    [
        ({"a": [1, "→", None, True]}, {"a": [1, "→", None, True]}),
        (np.float32(0.5), 0.5),
        ({"counts": np.arange(3)}, {"counts": [0, 1, 2]}),
        ((float("nan"), np.float64("inf"), 1.0), [None, None, 1.0]),
    ],
)
def test_json(tmp_path, value, expected):
    path = tmp_path / "a.json"
    files.write_json(path, value)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == expected
    assert text.endswith("\n")


def test_json_of_what_has_no_form_writes_nothing(tmp_path):
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", {"a": object()})
    assert names(tmp_path) == []


def test_a_staged_folder_is_hidden_until_it_is_moved(tmp_path, monkeypatch):
    synced: list = []
    monkeypatch.setattr(files, "sync_folder", synced.append)
    parent = tmp_path / "models" / "net"
    with files.staged_folder(parent) as staged:
        assert staged.parent == parent
        assert staged.name.startswith(".")
        (staged / "sub").mkdir()
        (staged / "sub" / "a.txt").write_text("text")
        files.move_folder(staged, parent / "1")
    assert synced == [staged, staged / "sub", parent]
    assert names(parent) == ["1"]
    assert (parent / "1" / "sub" / "a.txt").read_text() == "text"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_staged_folder_that_fails_leaves_nothing(tmp_path, error):
    (tmp_path / "kept").mkdir()
    for parent in ("new/net", "kept"):
        with (
            pytest.raises(error),
            files.staged_folder(tmp_path / parent) as staged,
        ):
            (staged / "a.txt").write_text("half")
            raise error
    assert names(tmp_path) == ["kept"]
    assert names(tmp_path / "kept") == []


def test_a_place_that_is_taken_or_full(tmp_path, monkeypatch):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "a.txt").write_text("old")
    with files.staged_folder(tmp_path) as staged:
        (staged / "a.txt").write_text("new")
        with pytest.raises(InputError, match=f"cannot write {tmp_path / '1'}"):
            files.move_folder(staged, tmp_path / "1")

        def refuse(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(InputError, match="No space left"):
            files.move_folder(staged, tmp_path / "2")
    assert names(tmp_path) == ["1"]
    assert (tmp_path / "1" / "a.txt").read_text() == "old"


def test_an_empty_folder_is_not_replaced(tmp_path):
    (tmp_path / "1").mkdir()
    with files.staged_folder(tmp_path) as staged:
        assert "File exists" in refusal(
            files.move_folder, staged, tmp_path / "1"
        )


def test_a_checksum_survives_numbers_as_keys(tmp_path):
    """JSON has text as keys, which sorts "10" before "9"."""
    path = tmp_path / "plan.json"
    plan = {"class_weight": {9: 1.0, 10: 2.0}}
    files.write_json(path, files.with_checksum(plan))
    assert files.check_checksum(json.loads(path.read_text()))
