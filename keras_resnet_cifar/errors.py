"""What can go wrong in a way that a user can mend."""

import difflib


class InputError(ValueError):
    """Bad input, told in one line that names the thing and the remedy.

    Scripts print the line and exit with code 2; library code raises it.
    """


class Diverged(RuntimeError):
    """The loss is not finite; the message says where and what to try."""


class Stopped(KeyboardInterrupt):
    """A signal stopped a run, which is saved and can go on.

    Args:
        number: Of the signal; scripts exit with 128 + it.
    """

    def __init__(self, number):
        super().__init__()
        self.number = number


class ExportFailed(RuntimeError):
    """A model could not be converted, or not verified; nothing was kept."""


def unknown(kind, name, known, hint=None):
    """Returns an `InputError` for a name that is not in a table.

    Args:
        kind: What the name should have been, e.g. `"dataset"`.
        name: The name as received.
        known: The names of the table.
        hint: What to say instead of the list of names, where it is long.
    """
    known = list(known)
    text = str(name).lower()
    near = difflib.get_close_matches(text, known, n=3, cutoff=0.5)
    remedy = f"did you mean {' or '.join(near)}? " if near else ""
    return InputError(
        f"unknown {kind} {name!r}: {remedy}"
        + (hint or f"known: {', '.join(known)}")
    )


def one_line(error):
    """Returns an exception as one short line, to be part of a message."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, InputError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
