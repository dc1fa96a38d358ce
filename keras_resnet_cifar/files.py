"""Files that are either whole or not there: write beside, then rename."""

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import re
import secrets
import shutil
import zipfile

from keras_resnet_cifar.errors import InputError, one_line

# Weights hardly compress, text by ten or twenty; zeros by a thousand.
_MOST_EXPANSION, _HARMLESS = 50, 1 << 28


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
    check_replaceable(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        move_into_place(temporary, path, keep)
    except OSError as error:
        told = " ".join((error.strerror or str(error)).split())
        raise InputError(
            f"cannot write {path}: {told}; "
            "name a place in a writable folder with free space"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_replaceable(path):
    """Raises `InputError` if a path is taken by what is no file.

    A device or a pipe would be replaced as well, where the user may do so.
    """
    # By `os.path`: where the folder may not be searched, writing will tell it.
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(
            f"cannot write {path}: there is a folder or a device; name a file"
        )


def is_temporary(path):
    """Whether a path is one that `atomic_write` gave and a kill left behind."""
    return re.fullmatch(r"\.[0-9a-f]{8}-.+", path.name) is not None


def move_into_place(temporary, path, keep=None):
    """Renames a file to its name, for good: not even a power cut halves it.

    The content is on the disk before the name says so, and the name is before
    this returns.

    Args:
        temporary: A whole file in the folder of `path`.
        path: Its name from now on; an older file of that name is replaced.
        keep: Where the older file goes instead.

    Raises:
        OSError: The system refused.
    """
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    if keep is not None and path.exists():
        os.replace(path, keep)
    os.replace(temporary, path)
    if os.name == "nt":  # Windows cannot open a folder
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        # Some network file systems know no fsync of folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(folder)


def check_zip(path):
    """Reads a zip file whole, against its checksums.

    For readers that skip the checksums, or believe the sizes: what decompresses
    to far more than it is on disk is refused before it is read.

    Raises:
        InputError: It is damaged, no zip file, or a decompression bomb; it
            says which and leaves it to the caller to name the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > max(_MOST_EXPANSION * os.path.getsize(path), _HARMLESS):
                raise InputError(f"refused: it decompresses to {size:,} bytes")
            damaged = archive.testzip()
    except InputError:
        raise
    except Exception as error:  # zipfile fails in many ways on a damaged file
        raise InputError(f"no whole zip file: {one_line(error)}") from error
    if damaged:
        raise InputError(f"{damaged} is damaged, by its checksum")


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


def sealed(value):
    """Returns a dict for JSON with the SHA-256 of its content in it.

    JSON has no checksum: a flipped bit makes another number of a seed.
    """
    value = _plain(value)
    return value | {"sha256": _sha256(value)}


def unsealed(value):
    """Returns what `sealed` took; a dict without a seal is taken as it is.

    Raises:
        ValueError: The content is not that of the seal.
    """
    value = dict(value)
    seal = value.pop("sha256", None)
    if seal not in (None, _sha256(value)):
        raise ValueError(
            "its content is not what was written, by its sha256 (where the "
            "change is meant, take that line out)"
        )
    return value


def _sha256(value):
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


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
