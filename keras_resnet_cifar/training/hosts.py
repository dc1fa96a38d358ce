"""Several processes, such as one on each host, that train one model.

JAX connects them. What they have to agree on, they exchange here; the first
one writes the files of a run.
"""

import contextlib
import os
import re
import socket
import threading
from collections.abc import Iterator

import numpy as np

from keras_resnet_cifar.errors import InputError

WAIT = 120  # seconds for all processes to come
# Seconds until a process is taken for dead: the others end within a minute.
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

    It is `keras.distribution.initialize` with time limits, to be called before
    JAX computes. A process that does not find the others within `WAIT` seconds
    ends with a line and exit code 2; JAX would abort it.

    Args:
        coordinator: `"host:port"`, an address of process 0 and a free port, or
            `"auto"` where JAX finds all three values, as under Slurm. `None`,
            here and below, is the variable of `VARIABLES`.
        num_processes: How many there are.
        process_id: Which of them this one is, from 0.

    Raises:
        InputError: A value is missing or wrong.
    """
    import keras

    given = (coordinator, num_processes, process_id)
    address, count, number = (
        os.environ.get(variable) or None if value is None else value
        for value, variable in zip(given, VARIABLES, strict=True)
    )
    if address is count is number is None:
        return
    if keras.backend.backend() != "jax":
        raise InputError(
            "several processes need JAX: set KERAS_BACKEND=jax, or leave out "
            "coordinator= and the variables KERAS_DISTRIBUTION_*"
        )
    if address == "auto":
        _connect(None, None, None)
        return
    address = str(address or "").split(",")[0]
    port = re.fullmatch(r".+:(\d{1,5})", address)
    if not port or not 0 < int(port[1]) < 2**16:
        raise InputError(
            f"coordinator={address}: give HOST:PORT, an address of process 0 "
            "and a free port there, or auto under Slurm"
        )
    numbers = re.fullmatch(r"(\d+) (\d+)", f"{count} {number}")
    if not numbers or not int(numbers[2]) < int(numbers[1]):
        raise InputError(
            f"num_processes={count}, process_id={number}: give both, the "
            "second from 0 to one less than the first"
        )
    if int(numbers[2]) == 0:
        try:  # JAX would crash
            socket.create_server(("", int(port[1]))).close()
        except OSError as error:
            raise InputError(
                f"coordinator={address}: the port is not free here ({error}); "
                "choose another one"
            ) from error
    _connect(address, int(numbers[1]), int(numbers[2]))


def _connect(address, count, number):
    import jax

    def give_up():
        who = "this process" if number is None else f"process {number}"
        line = (
            f"error: {who} did not find the others within {WAIT} s at the "
            f"coordinator {address or 'auto'}: start the same command on each "
            "host, and check the address\n"
        )
        os.write(2, line.encode())
        os._exit(2)

    # It would take over SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    timer = threading.Timer(WAIT, give_up)
    timer.daemon = True
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
    except ValueError as error:
        raise InputError(
            "coordinator=auto: JAX finds no cluster here: give coordinator="
            "HOST:PORT, num_processes= and process_id="
        ) from error
    finally:
        timer.cancel()


def count() -> int:
    """Returns the number of processes that train together."""
    import keras

    if keras.backend.backend() != "jax":
        return 1
    import jax

    return jax.process_count()


def is_first() -> bool:
    """Returns whether this process is the one that writes files."""
    if count() == 1:
        return True
    import jax

    return jax.process_index() == 0


def share_of(batch_size: int) -> slice:
    """Returns the images of a batch that this process feeds."""
    if count() == 1:
        return slice(None)
    import jax

    size = batch_size // count()
    return slice(size * jax.process_index(), size * (jax.process_index() + 1))


def largest(number: int) -> int:
    """Returns the largest number that a process gives; waits for all."""
    if count() == 1:
        return number
    from jax.experimental.multihost_utils import process_allgather

    return int(process_allgather(np.int32(number)).max())


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Waits for all processes after the block; fails if it fails on one.

    Raises:
        InputError: The block has failed on another process.
    """
    try:
        yield
    except Exception:
        largest(1)
        raise
    if largest(0):
        raise InputError("another process has failed: see its message")
