"""Logs a run to experiment trackers with their own functions."""

import contextlib
import json
import math
import secrets
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from keras_resnet_cifar.errors import InputError, check_name, one_line
from keras_resnet_cifar.files import write_json
from keras_resnet_cifar.training.run_directory import RunDirectory, flattened

# Each tracker has the methods of the first one. It starts a run, or continues
# the one named `run`, which is the attribute `run` of the tracker that started
# it.


class _TensorBoard:
    def __init__(self, folder: Path, params: dict[str, Any], run: str | None):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.run = "tensorboard"  # a folder, with a file for each part of a run
        self._writer = EventFileWriter(str(folder / self.run))
        if run is None:
            rows = "".join(f"\n| {key} | {params[key]} |" for key in params)
            self._text("params", f"| param | value |\n| --- | --- |{rows}")

    def log(self, values: dict[str, float], step: int) -> None:
        """Logs metrics."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        rows = (Summary.Value(tag=k, simple_value=values[k]) for k in values)
        self._write(Summary(value=rows), step)
        self._writer.flush()

    def finish(self, pictures: Sequence[Path], card: Path) -> None:
        """Logs the results at the end of a run."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for path in pictures:
            image = Summary.Image(encoded_image_string=path.read_bytes())
            row = Summary.Value(tag=path.stem, image=image)
            self._write(Summary(value=[row]), 0)
        self._text("model card", card.read_text("utf-8"))

    def close(self, failed: bool) -> None:
        """Ends the run, or this part of it."""
        self._writer.close()

    def _text(self, tag, text):
        from tensorboard.plugins.text.summary import text_pb

        self._write(text_pb(tag, text), 0)

    def _write(self, summary, step):
        from tensorboard.compat.proto.event_pb2 import Event

        now = time.time()
        event = Event(wall_time=now, step=step, summary=summary)
        self._writer.add_event(event)


class _MLflow:
    def __init__(self, folder: Path, params: dict[str, Any], run: str | None):
        import mlflow

        self._mlflow = mlflow
        self.run = mlflow.start_run(run, run_name=folder.name).info.run_id
        if run is None:  # of a run that exists, MLflow refuses other ones
            mlflow.log_params(params)

    def log(self, values, step):
        self._mlflow.log_metrics(values, step)

    def finish(self, pictures, card):
        for path in (*pictures, card):
            self._mlflow.log_artifact(str(path))

    def close(self, failed):
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


class _WandB:
    def __init__(self, folder: Path, params: dict[str, Any], run: str | None):
        import wandb

        self._wandb = wandb
        self.run = run or secrets.token_hex(4)
        self._log = wandb.init(
            project="keras_resnet_cifar",
            name=folder.name,
            id=self.run,
            resume="allow",
            config=params,
            dir=folder,
        )

    def log(self, values, step):
        self._log.log(values, step)

    def finish(self, pictures, card):
        images = {path.stem: self._wandb.Image(str(path)) for path in pictures}
        self._log.log(images)
        self._log.save(str(card), card.parent, policy="now")

    def close(self, failed):
        self._log.finish(int(failed))


class _Trackio:
    def __init__(self, folder: Path, params: dict[str, Any], run: str | None):
        import trackio

        self._trackio = trackio
        self.run = run or f"{folder.name}-{secrets.token_hex(2)}"
        trackio.init(
            "keras_resnet_cifar",
            self.run,
            config=params,
            resume="allow",
            embed=False,
        )

    def log(self, values, step):
        self._trackio.log(values, step)

    def finish(self, pictures, card):
        shown = {path.stem: self._trackio.Image(path) for path in pictures}
        text = self._trackio.Markdown(card.read_text("utf-8"))
        self._trackio.log(shown | {"model card": text})

    def close(self, failed):
        self._trackio.finish()


TRACKERS: dict[str, Any] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _WandB,
    "trackio": _Trackio,
}


def check_trackers(names: Sequence[str], folder: Any) -> None:
    """Raises `InputError` for a tracker that is unknown or not installed.

    Trackers also need an output folder.
    """
    for name in names:
        check_name("tracker", name, TRACKERS)
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a mere folder, as of wandb
            raise InputError(
                f"track={name} needs more packages: pip install "
                f"'keras_resnet_cifar[{name}]'"
            )
    if names and not folder:
        raise InputError("track= needs output_dir=, to store the runs' names")


@dataclass
class Tracking:
    """Sends a run to trackers, and continues with a warning if one fails.

    They get the config as params and the metrics of each epoch. Their runs
    start and end with this context; tracking.json in the run directory names
    them, so that a resumed run continues them. Without a directory, nothing is
    sent.
    """

    names: Sequence[str]
    directory: RunDirectory | None
    config: dict[str, Any]
    _trackers: dict[str, Any] = field(default_factory=dict, init=False)

    def __enter__(self) -> "Tracking":
        if self.directory is None or not self.names:
            return self
        path = self.directory.path / "tracking.json"
        runs = {}
        with contextlib.suppress(OSError, ValueError):
            runs = json.loads(path.read_text("utf-8"))
        params = flattened(self.config)
        folder = self.directory.path.absolute()
        for name in self.names:
            with self._going_on(name):
                tracker = TRACKERS[name](folder, params, runs.get(name))
                self._trackers[name] = tracker
                runs[name] = tracker.run
        write_json(path, runs)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._each(lambda tracker: tracker.close(error is not None))

    def log(self, epoch: int, logs: dict[str, Any]) -> None:
        """Sends the metrics of an epoch; arguments as of `on_epoch_end`."""
        values = {
            key: float(value)
            for key, value in logs.items()
            if value is not None and math.isfinite(value)
        }
        self._each(lambda tracker: tracker.log(values, epoch + 1))

    def finish(self, metrics: dict[str, Any], epoch: int) -> None:
        """Sends metrics of the test split, curves.png and the model card.

        `epoch` is that of the last model.
        """
        assert self.directory is not None
        curves, card = self.directory.curves, self.directory.card
        test = metrics["last"]["test"] if metrics else {}
        kept = ("top1", "top5", "loss", "ece")
        values = {f"test_{key}": test[key] for key in kept if key in test}
        self._each(lambda tracker: tracker.log(values, epoch))
        self._each(lambda tracker: tracker.finish([curves], card))

    def _each(self, action):
        for name in list(self._trackers):
            with self._going_on(name):
                action(self._trackers[name])

    @contextlib.contextmanager
    def _going_on(self, name):
        try:
            yield
        except Exception as error:  # of the network, a disk, a new version
            self._trackers.pop(name, None)
            warnings.warn(
                f"{name} failed ({one_line(error)}): the run continues without "
                "it",
                stacklevel=1,
            )
