"""Errors that a user can fix."""

import contextlib
import difflib
import math
import numbers
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

_ALIASES = {"tflite": "litert"}
_ALIASES |= dict.fromkeys(("bf16", "bfloat16"), "mixedbfloat16")
_ALIASES |= dict.fromkeys(("fp16", "float16"), "mixedfloat16")


class InputError(ValueError):
    """Bad input; one line names the problem and the remedy.

    The command line prints the line and exits with code 2.
    """


class OutOfMemory(InputError):
    """The device or the host has too little memory for the batch size."""


class Diverged(RuntimeError):
    """The loss is not finite; the message says where, and what to try."""


class Stopped(KeyboardInterrupt):
    """A signal stopped a run, which is saved and can be resumed.

    Args:
        number: The signal's number; the command line exits with 128 + `number`.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = number


class ExportFailed(RuntimeError):
    """A model could not be converted or verified; no file is left."""


def unknown(
    kind: str, name: object, known: Iterable[str], hint: str | None = None
) -> InputError:
    """Returns an `InputError` for a name that is not in a table.

    The message suggests `similar` names. `hint` replaces the list of the known
    names, if that is long.
    """
    known = list(known)
    near = similar(name, known)
    remedy = f"did you mean {' or '.join(near)}? " if near else ""
    return InputError(
        f"unknown {kind} {name!r}: {remedy}"
        + (hint or f"known: {', '.join(known)}")
    )


def similar(name: object, known: Collection[str]) -> list[str]:
    """Returns names that have the initials given (`"lr"`), or are similar."""
    text = str(name).lower()
    near = [
        k for k in known if "".join(w[0] for w in k.split("_") if w) == text
    ]
    return near or difflib.get_close_matches(text, known, n=3, cutoff=0.5)


def check_name(kind: str, name: Any, known: Collection[str]) -> None:
    """Raises `InputError` for a name that is not in a table."""
    if name not in list(known):  # not by its hash, which it may not have
        raise unknown(kind, name, known)


def checked_number(
    name: str,
    value: Any,
    kind: type = float,
    least: float = 0,
    most: float = math.inf,
) -> Any:
    """Returns a number as a Python int or float, if it is in range.

    Args:
        name: The argument, for the `InputError` otherwise.
        value: Any object; a bool is no number.
        kind: `int` for whole numbers only, or `float`.
        least, most: The range, both included; infinity is never accepted.
    """
    wanted: Any = numbers.Integral if kind is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, wanted):
        text = "a whole number" if kind is int else "a number"
        raise InputError(f"{name}={value!r}: give {text}")
    if not math.isfinite(value):
        raise InputError(f"{name}={value}: must be finite")
    if not least <= value <= most:
        bound = f"at most {most}" if value > most else f"at least {least}"
        raise InputError(f"{name}={value}: must be {bound}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def checked_below_one(name: str, value: Any) -> float:
    """Returns a number as a float, if it is at least 0 and below 1."""
    value = checked_number(name, value)
    if value >= 1:
        raise InputError(f"{name}={value}: must be below 1")
    return float(value)


def checked_seed(seed: Any) -> int:
    """Returns a seed as an int; raises `InputError` unless 0 to 2**31 - 1."""
    return checked_number("seed", seed, int, 0, 2**31 - 1)


def spelled(name: Any, known: Iterable[str]) -> Any:
    """Returns a name as the table spells it; an unknown name is unchanged.

    Case, spaces, hyphens and underscores do not matter: `CIFAR-10` is
    `cifar10`. `bf16`, `bfloat16`, `fp16`, `float16` and `tflite` are
    understood, too.
    """
    known = list(known)
    if name in known:
        return name

    def plain(text):
        return re.sub(r"[\s_-]", "", text.lower())

    meant = plain(str(name))
    meant = _ALIASES.get(meant, meant)
    return next((each for each in known if plain(each) == meant), name)


@contextlib.contextmanager
def explained(failure: str, remedy: str) -> Iterator[None]:
    """Re-raises any error as an `InputError` with failure, reason and remedy.

    Libraries raise many kinds of errors for damaged files.
    """
    try:
        yield
    except Exception as error:
        raise InputError(f"{failure} ({one_line(error)}); {remedy}") from error


def one_line(error: BaseException) -> str:
    """Returns an exception as one short line for use in a message."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, InputError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
