"""Kills a real training process again and again, and compares what it leaves.

    python tests/supervisor.py --kills 20

trains `shapes` twice: once undisturbed, once killed at random moments (SIGKILL,
each second time while a file is written) and resumed until it ends. Every array
of the backup, every weight of the models, history.csv and metrics.json must be
the same to the bit.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

COMMAND = [sys.executable, "-m", "keras_resnet_cifar", "train"]
OPTIONS = ["--quiet", "--backup-every", "0.3s"]


def undisturbed(folder, *options):
    """Runs a training to its end."""
    command = [*COMMAND, *OPTIONS, "--output-dir", str(folder), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def disturbed(folder, kills, longest, seed, *options):
    """Runs a training that is killed and resumed; returns what happened.

    Args:
        folder: The run directory.
        kills: How often to kill it, if it lasts as long.
        longest: Most seconds from its first backup to the kill.
        seed: Of the moments.
        *options: Of the training.

    Returns:
        A dict: kills survived, and how many of them left a temporary file,
        that is to say came while something was written.
    """
    moments = random.Random(seed)
    done = writing = 0
    while True:
        command = [*COMMAND, *OPTIONS, "--output-dir", str(folder), *options]
        if (folder / "config.json").exists():
            command = [*COMMAND, *OPTIONS, "--resume", str(folder)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done < kills:
            _await_backup(folder, process)
            time.sleep(moments.uniform(0, longest))
            if done % 2:
                _await_writing(folder, process)
            process.kill()
        _, errors = process.communicate()
        if process.returncode == 0:
            return {"kills": done, "while writing": writing}
        if process.returncode != -9:
            raise RuntimeError(f"exit {process.returncode}: {errors[-2000:]}")
        done += 1
        writing += _is_writing(folder)


def _is_writing(folder):
    """Whether there is a temporary file."""
    return any(folder.glob(".*-*"))


def _await_writing(folder, process):
    """Waits until something is being written."""
    while process.poll() is None and not _is_writing(folder):
        time.sleep(0.0005)


def _await_backup(folder, process):
    """Waits until this process has written a backup, so that it gets on."""
    backup = folder / "backup.npz"
    before = backup.stat().st_mtime_ns if backup.exists() else 0
    while process.poll() is None:
        if backup.exists() and backup.stat().st_mtime_ns != before:
            return
        time.sleep(0.01)


def differences(one, other):
    """Names of all that differs between two finished runs."""
    found = [
        name
        for name in ("history.csv", "metrics.json")
        if (one / name).read_bytes() != (other / name).read_bytes()
    ]
    a, b = (np.load(run / "backup.npz") for run in (one, other))
    found += [
        f"backup.npz {name}"
        for name in sorted({*a.files, *b.files} - {"state"})
        if name not in a.files
        or name not in b.files
        or not np.array_equal(a[name], b[name])
    ]
    for name in ("best.keras", "last.keras"):
        a, b = (weights(run / name) for run in (one, other))
        if not all(map(np.array_equal, a, b)):
            found.append(name)
    return found


def weights(path):
    import keras

    return keras.saving.load_model(path).get_weights()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=4.0)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    options = (
        *("--dataset", "shapes", "--arch", "resnet8", "--recipe", "strong"),
        *("--epochs", str(args.epochs), "--validation", "1000"),
    )
    print(f"backend {os.environ.get('KERAS_BACKEND', 'tensorflow')}")
    with tempfile.TemporaryDirectory() as work:
        one, other = Path(work, "undisturbed"), Path(work, "disturbed")
        undisturbed(one, *options)
        told = disturbed(other, args.kills, args.longest, args.seed, *options)
        different = differences(one, other)
    print(f"survived: {told}")
    print(f"different: {different or 'nothing'}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
