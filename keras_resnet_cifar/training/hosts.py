"""Several processes, such as one per host, that train one model under JAX."""

import contextlib
import json
import os
import re
import socket
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_resnet_cifar.errors import InputError, one_line

WAIT = 120  # seconds for all processes to connect
# Seconds until a process counts as dead; the others end within a minute.
_HEARTBEAT, _SHUTDOWN = 30, 45
VARIABLES = (  # that `keras.distribution.initialize` reads
    "KERAS_DISTRIBUTION_JOB_ADDRESSES",
    "KERAS_DISTRIBUTION_NUM_PROCESSES",
    "KERAS_DISTRIBUTION_PROCESS_ID",
)


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Connects this process to the others of its run, if there are any.

    It is `keras.distribution.initialize` with time limits. After `WAIT`
    seconds, it ends the process with a one-line error and exit code 2; JAX
    would abort.

    `coordinator` is `"host:port"`, an address of process 0 and a free port, or
    `"auto"` if JAX can find all three values, as under Slurm. `process_id`
    counts from 0. An argument that is `None` is read from its variable in
    `VARIABLES`. Raises `InputError` if a value is missing or wrong.
    """
    import keras

    given = (coordinator, num_processes, process_id)
    address, *numbers = (
        os.environ.get(variable) if value is None else str(value)
        for value, variable in zip(given, VARIABLES, strict=True)
    )
    if not address and numbers == [None, None]:
        return
    if keras.backend.backend() != "jax":
        raise InputError("several processes need JAX: set KERAS_BACKEND=jax")
    if address == "auto" and numbers == [None, None]:
        return _connect(None, None, None)
    address = (address or "").split(",")[0]
    words = " ".join(map(str, (address, *numbers)))
    found = re.fullmatch(r".+:(\d{1,5}) (\d+) (\d+)", words)
    port, count, number = map(int, found.groups() if found else (0, 0, 0))
    if not (0 < port < 2**16 and number < count):
        raise InputError(
            f"coordinator={address}, num_processes={numbers[0]}, process_id="
            f"{numbers[1]}: give HOST:PORT of process 0, the number of "
            "processes, and the number of this one, from 0; or only auto under "
            "Slurm"
        )
    if number == 0:
        try:  # JAX would crash
            socket.create_server(("", port)).close()
        except OSError as error:
            raise InputError(
                f"coordinator={address}: choose another port ({error})"
            ) from error
    _connect(address, count, number)


def _connect(address, count, number):
    import jax

    def give_up():
        line = (
            f"error: not all processes connected to the coordinator "
            f"{address or 'auto'} within {WAIT} s: check the address, and "
            "start all of them\n"
        )
        os.write(2, line.encode())
        os._exit(2)

    # This service would handle SIGTERM itself.
    jax.config.update("jax_enable_preemption_service", False)
    timer = threading.Timer(WAIT, give_up)
    timer.start()
    try:
        jax.distributed.initialize(
            address,
            count,
            number,
            initialization_timeout=2 * WAIT,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_SHUTDOWN,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"coordinator={address}: {one_line(error)}"
            if address
            else "coordinator=auto: JAX finds no cluster here; give HOST:PORT"
        ) from error
    finally:
        timer.cancel()
    here, total = jax.local_device_count(), jax.device_count()
    if total != here * jax.process_count():
        raise InputError(
            f"num_processes={jax.process_count()}: they have {total} devices, "
            f"{here} of them here: give each process the same number"
        )


def count() -> int:
    """Returns the number of processes that train together."""
    return _place()[0]


def is_first() -> bool:
    """Returns whether this process is the one that writes files."""
    return _place()[1] == 0


def _place():
    import keras

    if keras.backend.backend() != "jax":
        return 1, 0
    import jax

    return jax.process_count(), jax.process_index()


def share_of(batch_size: int) -> slice:
    """Returns the images of a batch that this process feeds."""
    processes, number = _place()
    size = batch_size // processes
    return slice(size * number, size * (number + 1))


def largest(number: int) -> int:
    """Returns the largest of the processes' numbers; waits for all of them."""
    if count() == 1:
        return number
    from jax.experimental.multihost_utils import process_allgather

    return int(process_allgather(np.int32(number)).max())


def check_same(*values: Any) -> None:
    """Raises `InputError` if another process gives other values, as JSON."""
    number = zlib.crc32(json.dumps(values, sort_keys=True).encode()) >> 1
    if largest(number) != -largest(-number):
        raise InputError(
            "the processes differ in an option or in their data: start all of "
            "them alike, apart from process_id="
        )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Waits for all after a block; `InputError` if it failed in another."""
    try:
        yield
    except Exception:
        largest(1)
        raise
    if largest(0):
        raise InputError("another process has failed: see its message")
