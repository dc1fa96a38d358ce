"""The command `demo`."""

import argparse
import socket
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from keras_resnet_cifar.cli import options
from keras_resnet_cifar.cli.start import import_keras
from keras_resnet_cifar.errors import InputError, check_name, explained
from keras_resnet_cifar.models.weights import SHIPPED, read_shipped
from keras_resnet_cifar.training.run_directory import find_run

_SHIPPED = {row.name: row for row in read_shipped()}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `demo`."""
    add = partial(options.add, parser)
    models = "run directories or .keras files, shown side by side"
    add("models", Path, models, nargs="*", metavar="RUN|MODEL")
    add("--weights", str, f"weights of this package: {', '.join(_SHIPPED)}")
    add("--port", int, "port on 127.0.0.1 to serve on", 7860)
    options.add_data_options(parser, "the run's or the weights'")
    options.add_allow_changed_data(parser)


def run(args: argparse.Namespace) -> None:
    """Serve a web page to try models on images and inspect their runs."""
    if find_spec("gradio") is None:
        raise InputError(
            "demo needs gradio: pip install 'keras_resnet_cifar[demo]'"
        )
    _check_port(args.port)
    paths = [options.checkpoints(path)[0] for path in args.models]
    jobs = [
        (str(path), path, options.data_request(path, args)[0]) for path in paths
    ]
    if args.weights is not None:
        check_name("weights", args.weights, _SHIPPED)
        row = _SHIPPED[args.weights]
        args.dataset = args.dataset or row.dataset
        path = SHIPPED / row.where
        request, _ = options.data_request(path, args)
        jobs.append((f"{row.arch}, weights {row.name}", path, request))
    if not jobs:
        raise InputError("no model: give a run, a .keras file or weights=")
    import_keras()
    from keras_resnet_cifar.demo.explorer import Explorer
    from keras_resnet_cifar.demo.page import serve
    from keras_resnet_cifar.models.pretrained import fetch

    if args.weights is not None:
        fetch(_SHIPPED[args.weights])  # refuses a damaged file
    explorers = []
    requests = [(path, request) for _, path, request in jobs]
    models = options.loaded(requests, args.allow_changed_data)
    for (name, path, _), (model, data, _, changed) in zip(
        jobs, models, strict=True
    ):
        print(f"{name}: evaluating on {data.name}{changed}", flush=True)
        explorers.append(Explorer(model, data, name, find_run(path)))
    serve(explorers, args.port)


def _check_port(port: int) -> None:
    """Raises `InputError` if a port is not available."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with explained(f"port={port} is not available", "choose another"):
            probe.bind(("127.0.0.1", port))
