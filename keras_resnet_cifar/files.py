"""Files that are either whole or not there: write beside, then rename."""

import contextlib
import json
import math
import os
import pathlib
import secrets

from keras_resnet_cifar.errors import InputError


@contextlib.contextmanager
def atomic_write(path, keep=None):
    """Gives a temporary path; what is written there becomes `path`, whole.

    The temporary file lies in the same folder and keeps the target's suffix,
    by which Keras and matplotlib choose the format. When the block raises, the
    temporary file is removed and an older `path` stays as it was.

    Example:

        with atomic_write("runs/r20/best.keras") as temporary:
            model.save(temporary)

    Args:
        path: The file to write; its folder must exist.
        keep: Where an older `path` goes, in the same folder; `None` drops it.

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
        if keep is not None and path.exists():
            os.replace(path, keep)
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
