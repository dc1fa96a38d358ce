"""Reads a pickle of dicts, lists, text and byte arrays, and nothing else.

A pickle is a program, and `find_class` decides what it may call: here a
`_Call`, which only records the call. Even NumPy's own functions, which crash on
forged types, run only after `byte_array` has checked their arguments.
"""

import io
import pickle
import pickletools
from functools import partial
from typing import Any

import numpy as np

from keras_resnet_cifar.errors import InputError

_CALLS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
}


class _Call:
    """A call that a pickle asks for."""

    def __init__(self, name, *args):
        self.name, self.args, self.state = name, args, None

    def __setstate__(self, state):
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) == ("_codecs", "encode"):  # bytes, up to protocol 2
            return lambda text, _: text.encode("latin1")
        if (module, name) not in _CALLS:
            raise InputError(
                f"refused: the pickle asks for {module}.{name}; only NumPy "
                "arrays are read"
            )
        return partial(_Call, name)


def load(content: bytes) -> Any:
    """Returns what a pickle holds; pass its arrays to `byte_array`.

    A damaged pickle may raise any exception.
    """
    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name in ("EXT1", "EXT2", "EXT4"):  # find_class may not see it
            raise InputError("refused: the pickle uses copyreg's extensions")
        # Pickles number their objects in order. For five bytes that number
        # one 2**31, the unpickler would allocate tens of gigabytes.
        if opcode.name.endswith("PUT") and not 0 <= argument <= count:
            raise InputError(f"refused: the pickle has no object {argument}")
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


def byte_array(item: Any) -> np.ndarray:
    """Returns the uint8 array that an item of a loaded pickle describes.

    Raises `InputError` if it describes no array of bytes, and `ValueError` if
    the bytes do not fill the shape.
    """
    match item:
        case _Call(name="_reconstruct", state=(_, shape, dtype, fortran, data)):
            pass
        case _Call(name="_frombuffer", args=(data, dtype, shape, order)):
            fortran = order == "F"
        case _:
            raise InputError("the data is not an array")
    code = dtype.args[0]
    if code not in ("u1", b"u1"):  # bytes in pickles of Python 2
        raise InputError(f"an array of dtype {code!r}, not bytes")
    array = np.frombuffer(data, np.uint8)
    return array.reshape(shape, order="F" if fortran else "C")
