"""The command `finetune`."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from keras_resnet_cifar.cli import options, runs
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.finetuning.backbones import (
    BACKBONES,
    FREEZE,
    check_backbone,
)
from keras_resnet_cifar.finetuning.phases import PhasedDirectory
from keras_resnet_cifar.training.recipes import FINETUNING, get_recipe

_NAMES = (
    f"{', '.join(BACKBONES)}, a run directory, a .keras file of this package, "
    "or, with --weights, another net such as resnet20"
)
_WEIGHTS = (
    "imagenet, hub (KerasHub's; needs the extra hub), none, or a file from "
    "PyTorch or keras.applications (without the top); for other nets, a name "
    "that the list command shows, such as cifar10, hf://user/name, or a file "
    "(default: imagenet; a .keras file has its own)"
)
_SIZE = (
    "side in pixels to resize images to (default: 224; for a .keras file its "
    "own)"
)
_HEAD = "epochs that train only the new head; 0 skips them (default: 2)"
_HEAD_RATE = "learning rate of the head epochs (default: the recipe's)"
_FREEZE = (
    "layers that stay frozen after the head epochs; a stage includes the stem "
    "and all stages before it (default: none)"
)
_CACHE = "compute a frozen backbone's features once, without augmentation"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `finetune`."""
    add = partial(options.add, parser)
    add("--backbone", str, _NAMES)
    add("--weights", str, _WEIGHTS)
    add("--image-size", int, _SIZE)
    add("--head-epochs", int, _HEAD)
    add("--head-learning-rate", float, _HEAD_RATE)
    add("--freeze", FREEZE, _FREEZE)
    add("--train-norm", bool, "train BatchNorm too; implied by --weights none")
    add("--cache-features", bool, _CACHE)
    runs.add_run_options(parser, FINETUNING, "the recipe's")


def run(args: argparse.Namespace) -> None:
    """Fine-tune a pretrained net: a new head first, then unfrozen layers."""
    request = _resumed(args) if args.resume else _new(args)
    runs.carry_out(args, request, _new_model)


def _new(args: argparse.Namespace) -> runs.Request:
    if args.backbone is None:
        raise InputError(f"give a --backbone: {_NAMES}")
    check_backbone(args.backbone, args.weights or "imagenet")
    changes = runs.recipe_changes(args) | {"dataset": args.dataset}
    recipe = get_recipe(args.recipe or FINETUNING, **changes)
    net = Path(args.backbone).stem
    request = runs.new_run(args, recipe, net, PhasedDirectory)
    request.settings |= {
        "freeze": args.freeze or "none",
        "head_epochs": 2 if args.head_epochs is None else args.head_epochs,
        "head_learning_rate": args.head_learning_rate,
        "train_norm": args.train_norm or args.weights == "none",
        "cache_features": args.cache_features,
    }
    return request


def _new_model(args: Any, settings: dict[str, Any], data: Any) -> Any:
    from keras_resnet_cifar.finetuning.finetune import build_finetuned

    return build_finetuned(
        args.backbone,
        data.num_classes,
        weights=args.weights or "imagenet",
        image_size=args.image_size,
        input_shape=data.train.images.shape[1:],
        train_norm=settings["train_norm"],
    )


def _resumed(args: argparse.Namespace) -> runs.Request:
    directory = PhasedDirectory(args.resume)
    plan = directory.read_plan()
    recipe = plan.pop("recipe")
    # The net of a run is fixed: it has no backbone, weights or image size.
    names = {"backbone", "weights", "image_size", *plan} - {"seed", "devices"}
    given = {name: getattr(args, name, None) for name in names}
    changes = {k: None if v is False else v for k, v in given.items()}
    config = directory.newest().read_config() | plan
    request = runs.resumed_run(args, config, recipe, changes)
    request.settings = plan | request.settings
    return request
