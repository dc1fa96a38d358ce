"""The command `predict`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from keras_resnet_cifar.cli import options
from keras_resnet_cifar.cli.start import import_keras
from keras_resnet_cifar.data.datasets import DATASETS, check_known
from keras_resnet_cifar.data.folders import class_names
from keras_resnet_cifar.training.run_directory import find_run


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `predict`."""
    model = "a run directory or a .keras file"
    options.add(parser, "model", Path, model, metavar="RUN|MODEL")
    options.add(parser, "images", Path, "files", nargs="+", metavar="IMAGE")
    classes = "dataset that names the classes (default: the run's)"
    options.add(parser, "--dataset", str, classes)
    options.add(parser, "--top", int, "classes to show for each image", 3)
    picture = "PNG file to write Grad-CAM heatmaps of the predicted classes to"
    options.add(parser, "--explain", Path, picture)
    options.add(parser, "--json", bool, "print JSON")


def run(args: argparse.Namespace) -> None:
    """Predict the classes of image files."""
    (path,) = options.checkpoints(args.model)
    names = _class_names(args.dataset, path)
    import_keras()
    from keras_resnet_cifar.evaluation.predict import predict_files
    from keras_resnet_cifar.models.saving import load_model

    model = load_model(path)
    rows = predict_files(model, args.images, names, args.top, args.explain)
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        classes = ", ".join(
            f"{entry['class']} {entry['probability']:.1%}"
            for entry in row["classes"]
        )
        print(f"{row['image']}: {classes}")


def _class_names(dataset: str | None, path: Path) -> Sequence[str] | None:
    """Returns the classes of a dataset, else of a model's run, if known."""
    if dataset is None:
        run = find_run(path)
        config = run.read_config()["dataset"] if run else {}
        return config.get("class_names")
    check_known(dataset)
    if dataset in DATASETS:
        return DATASETS[dataset].class_names
    return class_names(dataset)
