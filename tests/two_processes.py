"""Trains a small net in one of two processes, or in one process alone.

    python tests/two_processes.py FOLDER ACTION [COORDINATOR ID]

`test_hosts.py` runs it, with the virtual CPU devices that XLA_FLAGS says. It
leaves the weights in FOLDER/ACTION-ID.npz, and prints one JSON object.
"""

import json
import os
import signal
import sys
from pathlib import Path

import four_devices
import keras
import numpy as np
from four_devices import build_resnet, data_of, run

from keras_resnet_cifar.errors import Stopped
from keras_resnet_cifar.training import compilation, hosts


class SignalAt(keras.callbacks.Callback):
    """Sends its own process a signal before a group of steps."""

    def __init__(self, group, number):
        super().__init__()
        self.left = group
        self.number = number

    def on_train_batch_begin(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), self.number)


def main(folder, action, coordinator=None, process=0):
    compilation.steps_per_execution = lambda *_: 2
    process = int(process)

    def net(**arguments):
        built = build_resnet(**arguments)
        keras.utils.set_random_seed(process)  # as if it were from a file
        return built

    four_devices.build_resnet = net
    if action in ("killed", "first-killed"):
        hosts._SHUTDOWN = 10  # what the other one waits for at its end
    if coordinator == "auto":
        hosts.join(coordinator)
    elif coordinator:
        hosts.join(coordinator, 2, process)
    data = data_of(128, validation=64, test=64)  # two epochs of two groups
    callbacks, found = [], {}
    devices = None if coordinator else "all"
    settings = {"devices": devices, "backup_every": 1}
    if action == "seeded":
        settings |= {"seed": process}
    if (action, process) in (("killed", 1), ("first-killed", 0)):
        callbacks = [SignalAt(3, signal.SIGKILL)]
    if action == "resumed":
        settings |= {"resume": True}
        stop = SignalAt(2 * process, signal.SIGTERM)  # the second gets it
        try:
            run(data, folder / "killed", callbacks=[stop], **settings)
        except Stopped as stopped:
            found["signal"] = stopped.number
            found["steps"] = int(stop.model.steps_done)
        action = "killed"
    trained = run(data, folder / action, callbacks=callbacks, **settings)
    found |= {
        "history": [
            {k: row[k] for k in ("loss", "val_loss")} for row in trained.history
        ],
        "metrics": trained.metrics,
        "devices": trained.config["devices"],
    }
    np.savez(folder / f"{action}-{process}.npz", *trained.model.get_weights())
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
