"""The command `predict`."""

import argparse
import json
from pathlib import Path

from keras_resnet_cifar.cli import options
from keras_resnet_cifar.cli.start import import_keras
from keras_resnet_cifar.data.datasets import spelled_dataset
from keras_resnet_cifar.data.folders import image_files
from keras_resnet_cifar.training.run_directory import find_run


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `predict`."""
    model = "a run directory or a .keras file"
    options.add(parser, "model", Path, model, metavar="RUN|MODEL")
    files = "image files, or folders of them"
    options.add(parser, "images", Path, files, nargs="+", metavar="IMAGE")
    classes = "dataset with the names of the classes (default: the model's own)"
    options.add(parser, "--dataset", str, classes, type=spelled_dataset)
    options.add(parser, "--top", int, "classes to show for each image", 3)
    picture = "PNG file to write Grad-CAM heatmaps of the predicted classes to"
    options.add(parser, "--explain", Path, picture)
    options.add(parser, "--json", bool, "print JSON")


def run(args: argparse.Namespace) -> None:
    """Predict the classes of image files."""
    (path,) = options.checkpoints(args.model)
    names = options.class_names(args.dataset) if args.dataset else None
    directory = find_run(path)
    if names is None and directory:
        names = directory.read_config()["dataset"].get("class_names")
    images = image_files(args.images)
    import_keras()
    from keras_resnet_cifar.finetuning.inference import predict

    rows = predict(path, images, names, args.top, args.explain)
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        classes = ", ".join(
            f"{entry['class']} {entry['probability']:.1%}"
            for entry in row["classes"]
        )
        print(f"{row['image']}: {classes}")
