"""The command `demo`."""

import argparse
import socket
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from keras_resnet_cifar.cli import options
from keras_resnet_cifar.cli.start import import_keras
from keras_resnet_cifar.data.datasets import check_known
from keras_resnet_cifar.errors import InputError, one_line
from keras_resnet_cifar.models.weights import WEIGHTS, Weights, find_weights
from keras_resnet_cifar.training.run_directory import find_run


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `demo`."""
    add = partial(options.add, parser)
    models = "run directories or .keras files, shown side by side"
    add("models", Path, models, nargs="*", metavar="RUN|MODEL")
    add("--weights", str, "trained weights to show: see the list command")
    add("--arch", str, "their net, where there are several")
    compared = "training images to look for the nearest in"
    add("--train-images", int, compared, 10_000)
    add("--port", int, "port on 127.0.0.1", 7860)
    add("--open", bool, "open the page in the browser")
    options.add_data_options(parser, "the run's, or that of the weights")


def run(args: argparse.Namespace) -> None:
    """Open a page to try models on pictures, and to look at their runs."""
    if find_spec("gradio") is None:
        raise InputError(
            "the demo needs gradio: pip install 'keras_resnet_cifar[demo]'"
        )
    if args.train_images < 1:
        raise InputError(f"train_images={args.train_images}: give at least 1")
    _check_port(args.port)
    # What to show: its name, its file or row, the arguments of its dataset.
    jobs: list[tuple[str, Path | Weights, dict[str, Any]]] = []
    for model_or_run in args.models:
        (path,) = options.checkpoints(model_or_run)
        jobs.append((str(path), path, options.data_request(path, args)[0]))
    if args.weights:
        row = _row(args.weights, args.arch)
        request = {"name": args.dataset or row.dataset}
        request |= options.data_options(args)
        source, data_dir = request.get("source"), request.get("data_dir")
        check_known(request["name"], source, data_dir)
        jobs.append((f"{row.arch}, weights {row.name}", row, request))
    if not jobs:
        raise InputError("name a run, a .keras file or --weights")
    import_keras()
    import keras_resnet_cifar as krc
    from keras_resnet_cifar.demo.explorer import Explorer
    from keras_resnet_cifar.demo.page import serve
    from keras_resnet_cifar.models.saving import load_model

    explorers, loaded = [], None
    for name, source, request in jobs:
        if request != loaded:  # most often, all models share one dataset
            data, loaded = krc.load_dataset(**request), request
        if isinstance(source, Weights):
            model = krc.build_resnet(source.arch, weights=source.name)
            directory = None
        else:
            model, directory = load_model(source), find_run(source)
        print(f"{name}: looking at the images of {data.name}", flush=True)
        explorers.append(
            Explorer(model, data, name, directory, args.train_images)
        )
    serve(explorers, args.port, args.open)


def _row(name: str, arch: str | None) -> Weights:
    """Returns the row of trained weights that is meant; else `InputError`."""
    nets = [net for weights, net in WEIGHTS if weights == name]
    if arch is None and len(nets) > 1:
        raise InputError(
            f"weights={name!r} are there for {', '.join(nets)}: choose one "
            "with arch="
        )
    row = find_weights(name, arch or "".join(nets))
    if row is None:
        raise InputError(f"weights={name!r}: give a name of the list command")
    return row


def _check_port(port: int) -> None:
    """Raises `InputError` if a port cannot be had, before anything starts."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port={port} cannot be had ({one_line(error)}): choose another"
            ) from error
