"""The command `demo`."""

import argparse
import socket
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from keras_resnet_cifar.cli import options
from keras_resnet_cifar.cli.start import import_keras
from keras_resnet_cifar.errors import InputError, one_line, unknown
from keras_resnet_cifar.models.weights import SHIPPED, read_shipped
from keras_resnet_cifar.training.run_directory import check_data, find_run

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
        if args.weights not in _SHIPPED:
            raise unknown("weights", args.weights, _SHIPPED)
        row = _SHIPPED[args.weights]
        args.dataset = args.dataset or row.dataset
        path = SHIPPED / row.where
        request, _ = options.data_request(path, args)
        jobs.append((f"{row.arch}, weights {row.name}", path, request))
    if not jobs:
        raise InputError("no model: give a run, a .keras file or weights=")
    import_keras()
    from keras_resnet_cifar.data.load import at_input_size, load_dataset
    from keras_resnet_cifar.demo.explorer import Explorer
    from keras_resnet_cifar.demo.page import serve
    from keras_resnet_cifar.models.saving import load_model

    explorers, loaded = [], None
    for name, path, request in jobs:
        model, directory = load_model(path), find_run(path)
        request = at_input_size(request, model.input_shape)
        if request != loaded:  # most often, all models share one dataset
            data, loaded = load_dataset(**request), request
        config = directory.read_config() if directory else {}
        changed = ""
        if config and config["dataset"]["name"] == data.name:
            allowed = args.allow_changed_data
            if not check_data(config, data.fingerprints, allowed):
                changed = ", changed since the training"
        print(f"{name}: evaluating on {data.name}{changed}", flush=True)
        explorers.append(Explorer(model, data, name, directory))
    serve(explorers, args.port)


def _check_port(port: int) -> None:
    """Raises `InputError` if a port is not available."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port={port} is not available ({one_line(error)}): choose "
                "another"
            ) from error
