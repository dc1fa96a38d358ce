"""Atomic file writes: write a temporary file, then rename it."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_resnet_cifar.errors import InputError, one_line

# Weights hardly compress, text by a factor of 10 to 20, zeros by 1000.
_MOST_EXPANSION, _HARMLESS = 50, 1 << 28


@contextlib.contextmanager
def atomic_write(path: str | Path, keep: Path | None = None) -> Iterator[Path]:
    """Yields a temporary path to write to, then renames it to `path`.

    The temporary file is in the same folder and keeps the target's suffix, by
    which Keras and matplotlib choose the format. If the block raises, the
    temporary file is removed and an existing `path` is unchanged. The content
    and the name are synced to disk, so that a power cut leaves no partial file.

    The folder must exist. An existing `path` is moved to `keep`, in the same
    folder, or overwritten. Raises `InputError` if the system refuses to write.
    """
    path = Path(path)
    check_replaceable(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        _sync_file(temporary)
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or one_line(error)}; "
            "choose a writable folder with free space"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_replaceable(path: str | Path) -> None:
    """Raises `InputError` if a path exists and is not a file."""
    # `os.path` does not raise if the folder cannot be searched.
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(
            f"cannot write {path}: it is a folder or a device; name a file"
        )


def is_temporary(path: Path) -> bool:
    """Returns whether a path is one of `atomic_write`'s temporary files."""
    return re.fullmatch(r"\.[0-9a-f]{8}-.+", path.name) is not None


def _sync_file(path):
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Syncs the names in a folder to disk; raises `OSError` if that fails."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        # Some network file systems cannot sync folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(folder)


def check_zip(path: str | Path) -> None:
    """Checks the checksums of a whole zip file, which some readers skip.

    Raises `InputError` if it is damaged, not a zip file, or decompresses to far
    more than its size; the caller names the file.
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
        raise InputError(f"invalid zip file: {one_line(error)}") from error
    if damaged:
        raise InputError(f"{damaged} does not match its checksum")


def make_folder(path: str | Path) -> None:
    """Creates a folder and its parents; raises `InputError` on failure."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create the folder {path}: {error.strerror}; choose a "
            "writable location"
        ) from error


@contextlib.contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """Creates a folder and its parents; removes those that stay empty."""
    # `os.path` does not raise if a folder cannot be searched.
    made = [p for p in (path, *path.parents) if not os.path.exists(p)]
    try:
        make_folder(path)
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # it is no longer empty
                folder.rmdir()


@contextlib.contextmanager
def staged_folder(parent: str | Path) -> Iterator[Path]:
    """Yields an empty, hidden folder in `parent`, for use with `move_folder`.

    Unless it is moved, it is removed at the end, and so are the folders created
    for it, including `parent`.
    """
    staged = Path(parent) / f".{secrets.token_hex(4)}"
    with made_folder(staged.parent):
        try:
            make_folder(staged)
            yield staged
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def move_folder(staged: Path, place: Path) -> None:
    """Syncs a folder's content to disk, renames the folder and syncs the name.

    Raises `InputError` if the place is taken, or the system refuses.
    """
    try:
        if os.path.lexists(place):  # `rename` replaces an empty folder
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        for path in (staged, *staged.rglob("*")):
            sync = sync_folder if path.is_dir() else _sync_file
            sync(path)
        os.rename(staged, place)
        sync_folder(place.parent)
    except OSError as error:
        raise InputError(
            f"cannot write {place}: {error.strerror}; choose a free name in a "
            "writable folder with free space"
        ) from error


def write_text(path: str | Path, text: str) -> None:
    """Writes a string as UTF-8, as `atomic_write` does."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Writes a value as indented JSON, as `atomic_write` does.

    NumPy scalars and arrays become numbers and lists. NaN and infinities,
    which JSON does not have, become null.
    """
    text = json.dumps(_plain(value), indent=2, allow_nan=False)
    write_text(path, text + "\n")


def with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """Returns a dict for JSON with the SHA-256 of its content added.

    JSON has no checksum, and a flipped bit could change a seed unnoticed.
    """
    value = _plain(value)
    return value | {"sha256": _sha256(value)}


def check_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """Returns the dict given to `with_checksum`, or one without a checksum.

    Raises `ValueError` if the content does not match the checksum.
    """
    value = dict(value)
    checksum = value.pop("sha256", None)
    if checksum not in (None, _sha256(value)):
        raise ValueError(
            "its content does not match its sha256 (remove that line if you "
            "edited the file on purpose)"
        )
    return value


def _sha256(value):
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value):
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
