"""Trains a tiny net for many steps and watches the memory of the process.

    python tests/soak.py --steps 100000

prints the resident memory after 1,000 steps, at the end and the growth between;
exits 1 if that is 5 % or more. Epochs, validation and backups are part of it.
"""

import argparse
import os
import sys
import tempfile
import time

import keras

from keras_resnet_cifar.data.load import load_dataset
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.training.train import train

BATCH = 4


class Memory(keras.callbacks.Callback):
    """Notes the resident memory in MiB every thousand steps."""

    def __init__(self):
        super().__init__()
        self.steps = 0
        self.noted = []

    def on_train_batch_begin(self, batch, logs=None):
        self.steps += self.model.steps_per_execution
        if self.steps // 1000 > len(self.noted):
            self.noted.append(resident_mib())


def resident_mib():
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000)
    args = parser.parse_args()
    data = load_dataset("shapes", validation=200)
    epochs = -(-args.steps // (len(data.train) // BATCH))
    model = build_resnet(depth=8, widths=(4, 4, 4), normalization="shapes")
    memory = Memory()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        train(
            model,
            data,
            output_dir=f"{work}/run",
            epochs=epochs,
            batch_size=BATCH,
            learning_rate=0.01,
            precision="float32",
            backup_every="5s",
            callbacks=[memory],
            verbose=False,
        )
    first, last, most = memory.noted[0], memory.noted[-1], max(memory.noted)
    growth = last / first - 1
    print(
        f"{keras.backend.backend()}: {memory.steps:,} steps, {epochs} epochs, "
        f"{time.monotonic() - begin:.0f} s: {first:.0f} MiB after 1,000 steps, "
        f"{last:.0f} at the end ({growth:+.1%}), {most:.0f} at most"
    )
    return 1 if growth >= 0.05 else 0


if __name__ == "__main__":
    sys.exit(main())
