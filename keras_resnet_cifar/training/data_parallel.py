"""Keras's data parallelism over the devices of all processes, under JAX.

Each device holds all variables and the resident images, and computes its share
of a batch; XLA adds up the gradients and the sums of BatchNorm.
"""

import warnings
from typing import Any

import keras
from keras.distribution import DataParallel

from keras_resnet_cifar.data.batches import (
    RESIDENT_BYTES,
    StreamedSplit,
    even_batch_size,
    has_even_batches,
)
from keras_resnet_cifar.data.load import Dataset
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.training import hosts

Devices = int | str | None  # a number, "all", or None


def distribution_of(devices: Devices, saved: int | None) -> DataParallel | None:
    """Returns how a run is distributed; `None` on one device.

    `devices` is the argument of `train`; `None` means the distribution set with
    `keras.distribution.set_distribution`, else one over `saved` devices.
    """
    if keras.backend.backend() != "jax":
        if devices not in (None, 1):
            raise InputError(
                f"devices={devices} needs JAX: set KERAS_BACKEND=jax, or give "
                "devices=1"
            )
        return None
    own = keras.distribution.distribution()
    if own is None:
        if hosts.count() > 1:
            return _of_all_processes(devices)
        return _data_parallel(saved if devices is None else devices)
    if devices is not None:
        raise InputError(
            f"devices={devices} cannot be combined with keras.distribution."
            "set_distribution: omit one"
        )
    if not isinstance(own, DataParallel) or own.device_mesh.devices.ndim != 1:
        raise InputError(
            f"{type(own).__name__} is not supported: set a "
            "keras.distribution.DataParallel() with one axis, or give devices="
        )
    if hosts.count() > 1:
        return _of_all_processes(own.device_mesh.devices.size, own.device_mesh)
    return own


def _data_parallel(devices):
    if devices is None:
        return None
    available = keras.distribution.list_devices()
    count = len(available) if devices == "all" else devices
    if type(count) is not int or count < 1:
        raise InputError(
            f"devices={devices!r}: give 'all', or a number of at least 1"
        )
    if count > len(available):
        hint = ""
        if available[0].startswith("cpu"):
            flag = "--xla_force_host_platform_device_count"
            hint = f" (XLA_FLAGS={flag}={count} splits a CPU, for tests)"
        raise InputError(
            f"devices={count}: JAX finds {len(available)} on this machine"
            f"{hint}: give devices={len(available)}"
        )
    return DataParallel(devices=available[:count]) if count > 1 else None


def _of_all_processes(devices, mesh=None):
    """Returns a distribution over the devices of all processes."""
    total = len(keras.distribution.list_devices())
    if devices not in (None, "all", total):
        raise InputError(
            f"devices={devices}: {hosts.count()} processes always use all of "
            f"their {total} devices: give devices='all'"
        )
    # The feed gives each process its share of a batch.
    return DataParallel(mesh, auto_shard_dataset=False)


def count(distribution: DataParallel | None) -> int:
    """Returns the number of devices."""
    return distribution.device_mesh.devices.size if distribution else 1


def local(devices: int) -> int:
    """Returns how many of the devices this process has; 0 for one device."""
    return devices // hosts.count() if devices > 1 else 0


def check_shares(devices: int, data: Dataset, batch_size: int) -> None:
    """Checks that each device gets the same share of every batch."""
    if devices == 1:
        return
    if isinstance(data.train, StreamedSplit):
        raise InputError(
            "several devices cannot train on a stream: give (images, labels), "
            "or devices=1"
        )
    if batch_size % devices:
        lower = batch_size // devices * devices
        sizes = [f"batch_size={s}" for s in (lower, lower + devices) if s]
        raise InputError(
            f"batch_size={batch_size} is not divisible by {devices} devices: "
            f"give a multiple of {devices}, such as {' or '.join(sizes)}"
        )
    split = data.validation
    if split is None or has_even_batches(split):
        return
    largest = min(len(split), RESIDENT_BYTES // split.images[0].nbytes)
    fitting = (n for n in range(largest, 0, -1) if not n % even_batch_size(n))
    raise InputError(
        f"{len(split)} validation images do not divide into equal batches that "
        f"fit on each of {devices} devices: give validation={next(fitting)}"
    )


def warn_if_changed(name: str, count: int, saved: int) -> None:
    """Warns that a resumed run has another number of devices, or processes."""
    if count != saved:
        warnings.warn(
            f"{name}={count}, which was {saved}: the run continues, but its "
            "sums differ in the last digits",
            stacklevel=4,
        )


def shared(batch: Any) -> Any:
    """Distributes a batch over the devices of the current distribution, if any.

    If the size of the batch is not divisible by the number of devices, the
    tensor is unchanged, and each device computes all of it.
    """
    distribution = keras.distribution.distribution()
    if distribution is None or batch.shape[0] % count(distribution):
        return batch
    layout = distribution.get_data_layout(batch.shape)
    return keras.distribution.distribute_tensor(batch, layout)
