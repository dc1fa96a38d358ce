"""The command `train`."""

import argparse
from pathlib import Path
from typing import Any

from keras_resnet_cifar.cli import options, runs, seeds
from keras_resnet_cifar.data.datasets import DATASETS, check_known
from keras_resnet_cifar.errors import InputError, explained
from keras_resnet_cifar.models import architectures
from keras_resnet_cifar.models.weights import find_weights
from keras_resnet_cifar.training.recipes import (
    DEFAULT,
    Recipe,
    checked_steps,
    get_recipe,
)
from keras_resnet_cifar.training.run_directory import RunDirectory
from keras_resnet_cifar.training.tracking import TRACKERS, check_trackers

_ARCH = (
    "the net: a name that the list command shows, or a name of the form "
    f"{architectures.RULE} (default: the recipe's)"
)
_INIT_FROM = (
    "run directory or .keras file with the net and weights to start the new "
    "run from (default: none)"
)
_STEPS = "steps per compiled call; 1 is slower (default: chosen for the device)"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `train`."""
    options.add(parser, "--arch", str, _ARCH)
    options.add(parser, "--weights", str, options.WEIGHTS)
    size = "side in pixels of a folder's images (default: their median side)"
    options.add(parser, "--image-size", int, size)
    options.add(parser, "--init-from", Path, _INIT_FROM)
    options.add(parser, "--steps-per-execution", int, _STEPS)
    trackers = f"trackers to send the results to: {', '.join(TRACKERS)}"
    several = {"nargs": "+", "metavar": "NAME", "action": "extend"}
    options.add(parser, "--track", tuple(TRACKERS), trackers, **several)
    dataset = "that of --recipe if given, otherwise shapes"
    seeds.add_options(parser)
    runs.add_run_options(parser, DEFAULT, dataset)


def run(args: argparse.Namespace) -> None:
    """Train a net with a recipe and evaluate it on the test split."""
    checked_steps(args.steps_per_execution)
    if seeds.are_meant(args):
        return seeds.run(args, _new)
    request = _resumed(args) if args.resume else _new(args)
    request.settings["track"] = args.track or ()
    request.settings["steps_per_execution"] = args.steps_per_execution
    check_trackers(request.settings["track"], request.settings["output_dir"])
    runs.carry_out(args, request, new_model)


def recipe_of(args: argparse.Namespace) -> Recipe:
    """Returns the recipe that the options describe."""
    recipe = get_recipe(
        args.recipe or DEFAULT,
        arch=args.arch,
        dataset=None if args.recipe else "shapes",
        **runs.recipe_changes(args),
    )
    return get_recipe(recipe, dataset=args.dataset)


def _new(args: argparse.Namespace) -> runs.Request:
    recipe = recipe_of(args)
    if args.init_from:
        for name in ("arch", "weights"):
            if getattr(args, name):
                raise InputError(
                    f"{name}= cannot be combined with init_from=: omit one"
                )
        options.checkpoints(args.init_from)
        net = args.init_from.stem
    else:
        net = architectures.resolve(recipe.arch).name
    if args.weights:
        find_weights(args.weights, net)
    check_known(recipe.dataset, image_size=args.image_size)
    request = runs.new_run(args, recipe, net)
    request.data["image_size"] = args.image_size
    return request


def new_model(args: Any, settings: dict[str, Any], data: Any) -> Any:
    """Returns the net of a new run, not trained or with given weights."""
    from keras_resnet_cifar.models.resnet import build_resnet
    from keras_resnet_cifar.models.saving import load_model

    if getattr(args, "init_from", None):  # `sweep` has no such option
        model = load_model(*options.checkpoints(args.init_from))
        model.pretrained = str(args.init_from)  # for the config of the run
        return model
    recipe = settings["recipe"]
    # Images of one's own are normalized like ImageNet's.
    statistics = data.name if data.name in DATASETS else "imagenet"
    if args.weights:
        statistics = "auto"
    return build_resnet(
        recipe.arch,
        weights=args.weights,
        num_classes=data.num_classes,
        input_shape=data.train.images.shape[1:],
        normalization=recipe.normalization or statistics,
    )


def _resumed(args: argparse.Namespace) -> runs.Request:
    config = RunDirectory(args.resume).read_config()
    remedy = "restore its config.json or start a new run"
    with explained(f"cannot read the recipe of {args.resume}", remedy):
        recipe = get_recipe(Recipe(**config["recipe"]))
    arch = args.arch and architectures.resolve(args.arch).name
    size = args.image_size and [args.image_size] * 2
    start = args.weights or (args.init_from and str(args.init_from))
    changes = {"arch": arch, "weights": start}
    changes["request"] = {"image_size": size}
    return runs.resumed_run(args, config, recipe, changes)
