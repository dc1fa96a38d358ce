"""Files that are either whole or not there: write beside, then rename."""

import contextlib
import json
import math
import os
import pathlib
import secrets
import shutil

from keras_resnet_cifar.errors import InputError


@contextlib.contextmanager
def atomic_write(path):
    """Gives a temporary path; what is written there becomes `path`, whole.

    The temporary file lies in the same folder and keeps the target's suffix,
    by which Keras and matplotlib choose the format. When the block raises, the
    temporary file is removed and an older `path` stays as it was.

    Example:

        with atomic_write("runs/r20/best.keras") as temporary:
            model.save(temporary)

    Args:
        path: The file to write; its folder must exist.

    Yields:
        A `pathlib.Path` that does not exist yet.

    Raises:
        InputError: The system refused (no folder, not allowed, disk full).
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = " ".join((error.strerror or str(error)).split())
        raise InputError(
            f"cannot write {path}: {reason}; "
            "name a place in a writable folder with free space"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def make_folder(path):
    """Makes a folder and those above it; raises `InputError` if refused."""
    try:
        pathlib.Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {path}: {error.strerror}; name a "
            "writable place"
        ) from error


@contextlib.contextmanager
def staged_folder(parent):
    """Gives an empty, hidden folder in `parent`, to fill and `move_folder`.

    If it was not moved, it is removed, and with it what was made of `parent`.

    Args:
        parent: A folder; it is made if need be.

    Raises:
        InputError: The system refused.
    """
    parent = pathlib.Path(parent)
    # os.path's: a folder that may not be looked into is not there.
    made = [p for p in (parent, *parent.parents) if not os.path.exists(p)]
    staged = parent / f".{secrets.token_hex(4)}"
    try:
        make_folder(staged)
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):  # it holds something by now
                folder.rmdir()


def move_folder(staged, place):
    """Renames a folder, when all that is in it has reached the disk.

    Raises:
        InputError: The place is taken, or the system refused.
    """
    try:
        for path in staged.rglob("*"):
            if path.is_file():
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
        os.rename(staged, place)
    except OSError as error:
        raise InputError(
            f"cannot write {place}: {error.strerror}; name a free place in a "
            "writable folder with free space"
        ) from error


def write_text(path, text):
    """Writes a string as UTF-8, atomically; `Raises` as `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path, value):
    """Writes a value as indented JSON, atomically.

    NumPy scalars and arrays become numbers and lists. NaN and infinities,
    which JSON does not have, become null.

    Raises:
        InputError: As `atomic_write`.
        TypeError: The value holds something JSON has no form for.
    """
    text = json.dumps(_plain(value), indent=2, allow_nan=False)
    write_text(path, text + "\n")


def _plain(value):
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
