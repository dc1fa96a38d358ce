"""The commands that train: `train` and `finetune`."""

import dataclasses
import os
from pathlib import Path

from keras_resnet_cifar.cli.options import (
    data_options,
    described,
    print_results,
)
from keras_resnet_cifar.cli.start import import_keras
from keras_resnet_cifar.data.datasets import DATASETS, check_known
from keras_resnet_cifar.errors import InputError, Stopped, unknown
from keras_resnet_cifar.finetuning.backbones import BACKBONES
from keras_resnet_cifar.finetuning.phases import PhasedDirectory
from keras_resnet_cifar.models import architectures
from keras_resnet_cifar.training.backups import Interval
from keras_resnet_cifar.training.recipes import (
    DEFAULT,
    FINETUNING,
    OPTIONS,
    Recipe,
    checked_seed,
    get_recipe,
)
from keras_resnet_cifar.training.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What `train` will do, before anything heavy is imported.

    Attributes:
        recipe: The `Recipe`, options applied.
        request: Arguments of `load_dataset`.
        seed: Of everything.
        directory: The run directory.
        arch: Name of the net to build; `None` to resume `directory`.
        deterministic: Whether the backend is asked for the same bits.
    """

    recipe: Recipe
    request: dict
    seed: int
    directory: Path
    arch: str | None = None
    deterministic: bool = False


def train(args):
    """Train a net by a recipe and evaluate it on the test split."""
    plan = _resumed_plan(args) if args.resume else _new_plan(args)
    Interval.parse(args.backup_every)
    import_keras()
    from keras_resnet_cifar.data.load import load_dataset
    from keras_resnet_cifar.training.train import train as run_training

    _prepare(plan.deterministic)
    data = load_dataset(**plan.request)
    model = _model(plan, data)
    print(
        f"{model.name} on {described(data)}\nrecipe {plan.recipe.name}, "
        f"epochs: {plan.recipe.epochs}, run directory {plan.directory}"
    )
    try:
        run = run_training(
            model,
            data,
            plan.recipe,
            plan.directory,
            seed=plan.seed,
            resume=plan.arch is None,
            backup_every=args.backup_every,
            deterministic=plan.deterministic,
            tensorboard=args.tensorboard,
            verbose=not args.quiet,
        )
    except Stopped as stopped:
        stopped.args = (
            "; to go on: python -m keras_resnet_cifar train --resume "
            f"{plan.directory}",
        )
        raise
    print_results(run)


def _prepare(deterministic):
    """Has JAX repeat itself on a GPU: it looks when it first computes."""
    from keras_resnet_cifar.device import JAX_DETERMINISTIC

    if deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} {JAX_DETERMINISTIC}"


def _model(plan, data):
    """The net to train: a new one, or the structure of the resumed one."""
    import keras

    from keras_resnet_cifar.models.resnet import build_resnet
    from keras_resnet_cifar.models.saving import load_model

    if plan.arch is None:
        last = RunDirectory(plan.directory).last
        if not last.is_file():
            raise InputError(
                f"{last} is missing, which holds the structure of the net: "
                "restore it (a copy of best.keras does), or start a new run"
            )
        return load_model(last)
    keras.utils.set_random_seed(plan.seed)
    return build_resnet(
        plan.arch,
        num_classes=data.num_classes,
        input_shape=data.train.images.shape[1:],
        normalization=plan.recipe.normalization or _statistics(data),
    )


def _statistics(data):
    """Whose channel statistics normalise; one's own images take ImageNet's."""
    return data.name if data.name in DATASETS else "imagenet"


def _new_plan(args):
    recipe = get_recipe(args.recipe or DEFAULT, **_changes(args))
    arch = recipe.arch if args.arch is None else args.arch
    arch = architectures.parse(arch).name
    name = recipe.dataset if args.recipe else "shapes"
    name = name if args.dataset is None else args.dataset
    check_known(name, args.source)
    stem = f"{arch}-{Path(name).name}-{recipe.name}"
    directory = args.output_dir or _unused(stem)
    RunDirectory(directory).check_unused()
    seed = checked_seed(args.seed or 0)
    request = {"name": name, "validation": recipe.validation, "seed": seed}
    return _Plan(
        recipe,
        request | data_options(args),
        seed,
        directory,
        arch,
        args.deterministic,
    )


def _resumed_plan(args):
    config = RunDirectory(args.resume).read_config()
    try:
        recipe = get_recipe(Recipe(**config["recipe"]))
    except (TypeError, InputError) as error:
        raise InputError(
            f"cannot read the recipe of {args.resume}: {error}; restore its "
            "config.json or start a new run"
        ) from error
    arch = args.arch and architectures.parse(args.arch).name
    asked_and_held = {
        "output_dir": (args.output_dir, args.resume),
        "arch": (arch, config["arch"]),
        "recipe": (args.recipe, recipe.name),
        "dataset": (args.dataset, config["dataset"]["name"]),
        "seed": (args.seed, config["seed"]),
    } | {
        name: (value, getattr(recipe, name))
        for name, value in _changes(args).items()
        if name != "epochs"  # whether it fits depends on how far the run got
    }
    for name, (asked, held) in asked_and_held.items():
        if asked not in (None, held):
            raise InputError(
                f"cannot resume with another config: {name} was {held}, now "
                f"{asked}; leave the option out, or start a new run"
            )
    recipe = get_recipe(recipe, epochs=args.epochs)
    request = config["request"] | data_options(args)
    deterministic = args.deterministic or config.get("deterministic", False)
    return _Plan(
        recipe,
        request,
        config["seed"],
        args.resume,
        deterministic=deterministic,
    )


def finetune(args):
    """Fine-tune a pretrained net: its new head, then all that is not frozen."""
    plan, request, directory = (
        _resumed_finetuning(args) if args.resume else _new_finetuning(args)
    )
    Interval.parse(args.backup_every)
    import_keras()
    import keras

    from keras_resnet_cifar.data.load import load_dataset
    from keras_resnet_cifar.finetuning import finetune as finetuning
    from keras_resnet_cifar.models.saving import load_model

    _prepare(plan["deterministic"])
    data = load_dataset(**request)
    if args.resume:
        model = load_model(directory.newest().last)
    else:
        keras.utils.set_random_seed(plan["seed"])
        model = finetuning.build_finetuned(
            args.backbone,
            data.num_classes,
            weights=args.weights or "imagenet",
            image_size=args.image_size,
            input_shape=data.train.images.shape[1:],
            train_norm=plan["train_norm"],
        )
    print(
        f"{model.name} on {described(data)}\nrecipe {plan['recipe'].name}, "
        f"epochs: {plan['head_epochs']} + {plan['recipe'].epochs}, run "
        f"directory {directory.path}"
    )
    try:
        run = finetuning.finetune(
            model,
            data,
            output_dir=directory.path,
            resume=bool(args.resume),
            backup_every=args.backup_every,
            verbose=not args.quiet,
            **plan,
        )
    except KeyboardInterrupt as interrupt:
        if directory.begun():
            interrupt.args = (
                "; to go on: python -m keras_resnet_cifar finetune --resume "
                f"{directory.path}",
            )
        raise
    print_results(run)


def _new_finetuning(args):
    """Arguments of `finetune` and `load_dataset`, and the folder."""
    if args.backbone is None:
        raise InputError(
            f"which --backbone? {', '.join(BACKBONES)}, or a .keras file"
        )
    if args.backbone not in BACKBONES and not args.backbone.endswith(".keras"):
        raise unknown("backbone", args.backbone, [*BACKBONES, "a .keras file"])
    recipe = get_recipe(args.recipe or FINETUNING, **_changes(args))
    name = recipe.dataset if args.dataset is None else args.dataset
    check_known(name, args.source)
    stem = f"{Path(args.backbone).stem}-{Path(name).name}-{recipe.name}"
    directory = PhasedDirectory(args.output_dir or _unused(stem))
    directory.check_unused()
    seed = checked_seed(args.seed or 0)
    plan = {
        "recipe": recipe,
        "freeze": args.freeze or "none",
        "head_epochs": 2 if args.head_epochs is None else args.head_epochs,
        "head_learning_rate": args.head_learning_rate,
        "train_norm": args.train_norm or args.weights == "none",
        "cache_features": args.cache_features,
        "seed": seed,
        "deterministic": args.deterministic,
    }
    request = {"name": name, "validation": recipe.validation, "seed": seed}
    return plan, request | data_options(args), directory


def _resumed_finetuning(args):
    """As `_new_finetuning`, of a run that has begun."""
    directory = PhasedDirectory(args.resume)
    plan = directory.read_plan()
    options = ("backbone", "recipe", "dataset", "output_dir", "seed", "freeze")
    options += ("head_epochs", "head_learning_rate", *_changes(args))
    options += ("image_size", "weights", "cache_features", "train_norm")
    options += ("deterministic",)
    given = [
        name for name in options if getattr(args, name) not in (None, False)
    ]
    if given:
        raise InputError(
            f"--resume goes on as the run began: leave --"
            f"{given[0].replace('_', '-')} out, or start a new run"
        )
    request = directory.newest().read_config()["request"]
    return plan, request | data_options(args), directory


def _changes(args):
    """The recipe fields that were given as options."""
    given = {field.name: getattr(args, field.name) for field in OPTIONS}
    return {name: value for name, value in given.items() if value is not None}


def _unused(stem):
    """The first folder runs/STEM, runs/STEM-2, ... that is not there."""
    number = 1
    while True:
        path = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        if not path.exists():
            return path
        number += 1
