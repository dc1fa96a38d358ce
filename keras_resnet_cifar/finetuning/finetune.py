"""Fine-tuning: a pretrained backbone and a new head, trained in two phases."""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras
from keras import layers

from keras_resnet_cifar.errors import InputError, check_name, checked_seed
from keras_resnet_cifar.finetuning.backbones import FREEZE, found_backbone
from keras_resnet_cifar.finetuning.features import train_head
from keras_resnet_cifar.finetuning.phases import PhasedDirectory
from keras_resnet_cifar.finetuning.pretrained import load_backbone
from keras_resnet_cifar.models import nets
from keras_resnet_cifar.models.normalization import preprocess_input
from keras_resnet_cifar.training import hosts, run_directory
from keras_resnet_cifar.training.data_parallel import Devices
from keras_resnet_cifar.training.inputs import (
    ClassWeight,
    Data,
    as_dataset,
    class_weights,
)
from keras_resnet_cifar.training.muon import check_trained_norm
from keras_resnet_cifar.training.recipes import (
    FINETUNING,
    Recipe,
    get_recipe,
)
from keras_resnet_cifar.training.train import Run, train

_STEM, _END = 0, 5  # before the first stage, after the last


def build_finetuned(
    backbone: str | Path,
    num_classes: int,
    *,
    weights: str | Path = "imagenet",
    image_size: int | None = None,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    freeze: str = "none",
    train_norm: bool = False,
) -> keras.Model:
    """Builds a classifier from a pretrained backbone and a new head.

    The model takes raw images, uint8 or float in 0 to 255, resizes them
    (bilinear), preprocesses them as the backbone's weights expect, and returns
    float32 logits `[N, num_classes]`. All its layers are stock Keras layers.

    Args:
        backbone: A name of `BACKBONES`; another name of `build_resnet`, with
            `weights`; or a run directory or `.keras` file of a classifier
            whose head starts with `GlobalAveragePooling2D`, as in
            `build_resnet`. Nets, runs and files keep their normalization and
            image size.
        num_classes: Number of logits.
        weights: `"imagenet"`, `"none"` (random), `"hub"` (KerasHub's ImageNet
            weights, for resnet18, 50, 101 and 152), or a file of PyTorch (.th,
            .pt, .pth, .safetensors) or `keras.applications` (.h5, without the
            top). For another net of `build_resnet`, its `weights`, such as
            `"cifar10"`.
        image_size: Side in pixels to resize images to, 32 to 1024; by default
            224, or the input size of the `build_resnet` net or the file.
        input_shape: `(H, W, 3)` of the images, which are RGB.
        freeze, train_norm: See `freeze_backbone`.

    Returns:
        A `keras.Model` named "finetuned-BACKBONE", built, not compiled.

    Raises:
        InputError: An argument is unknown or out of range, or the weights are
            not available.

    Examples:
        >>> model = build_finetuned("resnet50", num_classes=100)
    """
    nets.check_head(num_classes)
    if tuple(input_shape)[2:] != (3,):
        raise InputError(
            f"input_shape={input_shape}: backbones take RGB images; give "
            "(height, width, 3), and repeat a grayscale channel three times"
        )
    check_name("freeze", freeze, FREEZE)
    base, preprocessing, side = load_backbone(backbone, weights, image_size)
    inputs = keras.Input(input_shape, name="image")
    x = inputs
    if tuple(input_shape[:2]) != (side, side):
        x = layers.Resizing(side, side, dtype="float32", name="resize")(x)
    if preprocessing:
        x = preprocess_input(x, preprocessing)
    x = base(x) if train_norm else base(x, training=False)
    name = f"finetuned-{Path(backbone).stem}"
    model = keras.Model(inputs, nets.head(x, num_classes), name=name)
    freeze_backbone(model, freeze, train_norm)
    own = str(found_backbone(backbone)).endswith(".keras")
    if own or str(weights) != "none":  # for the config of a run
        model.pretrained = str(backbone if own else weights)
    return model


def freeze_backbone(
    model: keras.Model, freeze: str = "all", train_norm: bool = False
) -> None:
    """Freezes layers of a fine-tuned model; the head is always trained.

    By default, BatchNorm in the backbone is frozen, too, and therefore in
    inference mode. Calling the backbone with `training=False` is not enough:
    Keras 3.15.1 still passes `training=True` to its layers in `fit`.

    Args:
        model: A model of `build_finetuned`, or loaded from its file.
        freeze: `"all"` freezes the whole backbone; `"stage1"` to `"stage4"`
            freeze the stem and the stages up to that one; `"none"` freezes no
            layer but BatchNorm.
        train_norm: Whether to train BatchNorm like the layers around it,
            including its statistics, as random weights need. The model must
            have been built with `train_norm=True`.

    Raises:
        InputError: `freeze` is unknown or names a stage that the backbone does
            not have, or the model has no backbone.
    """
    try:
        backbone = model.get_layer("backbone")
    except (AttributeError, ValueError):
        raise InputError(
            f"{getattr(model, 'name', model)} has no backbone to freeze: build "
            "it with build_finetuned"
        ) from None
    weighted = [x for x in nets.leaf_layers(backbone) if x.weights]
    stages = {stage_of(layer.name) for layer in weighted} - {_STEM, _END}
    last_frozen = {"all": _END, "none": -1} | {f"stage{s}": s for s in stages}
    if freeze not in last_frozen:
        raise InputError(
            f"freeze={freeze!r}: the backbone has {len(stages)} stages; give "
            f"one of {', '.join(last_frozen)}"
        )
    model.trainable = True
    for layer in weighted:
        is_norm = isinstance(layer, layers.BatchNormalization)
        frozen = stage_of(layer.name) <= last_frozen[freeze]
        layer.trainable = not frozen and (train_norm or not is_norm)


def stage_of(name: str) -> int:
    """Returns the stage of a backbone's layer by its name.

    Stages count from 1: `stage1_block0_...` in nets of this package,
    `conv2_block1_...` in keras.applications. The stem is 0, and the final
    BatchNorm of pre-activation nets, after the last stage, is 5.
    """
    match = re.match(r"(stage|conv)(\d+)_block", name)
    if match:
        return int(match[2]) - (match[1] == "conv")
    return _STEM if name.startswith(("stem", "conv1")) else _END


def finetune(
    model: keras.Model,
    data: Data,
    recipe: str | Recipe = FINETUNING,
    output_dir: str | Path | None = None,
    *,
    validation_data: tuple | None = None,
    class_weight: ClassWeight = None,
    freeze: str = "none",
    head_epochs: int = 2,
    head_learning_rate: float | None = None,
    train_norm: bool = False,
    cache_features: bool = False,
    seed: int = 0,
    resume: bool = False,
    backup_every: str | int = run_directory.DEFAULT_INTERVAL,
    deterministic: bool = False,
    devices: Devices = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: bool = True,
    **changes: Any,
) -> Run:
    """Trains the new head, then every layer that `freeze` does not freeze.

    Both phases are runs with the same recipe: the head's in `output_dir/head`,
    the second in `output_dir/tuned`.

    Args:
        model: A model of `build_finetuned`.
        data: A `Dataset`, or any other data that `train` accepts.
        recipe: A name of `RECIPES` or a `Recipe`. If it uses
            `random_resized_crop`, the crops get the backbone's image size.
        output_dir: Folder of both phases; `None` writes no files.
        validation_data, class_weight: See `train`.
        freeze: What stays frozen in the second phase; see `freeze_backbone`.
        head_epochs: Epochs of the first phase; 0 skips it.
        head_learning_rate: Its learning rate; by default the recipe's.
        train_norm: See `freeze_backbone`.
        cache_features: Compute the features of a frozen backbone once, without
            augmentation, so that an epoch takes seconds. This applies to the
            first phase and, with `freeze="all"`, to the second.
        seed: Random seed of shuffling and augmentation.
        resume: Continue the run in `output_dir`.
        backup_every, deterministic, devices: See `train`. Cached features are
            computed, and their head is trained, on one device.
        callbacks: More Keras callbacks, for both phases. With cached features,
            their model is the head alone.
        verbose: Whether to print progress.
        **changes: Fields of the recipe to override; `learning_rate` is that of
            the second phase.

    Returns:
        The `Run` of the last phase.

    Raises:
        InputError, Diverged, Stopped: See `train` and `freeze_backbone`.

    Examples:
        >>> model = build_finetuned("resnet50", data.num_classes)
        >>> run = finetune(model, data, output_dir="runs/ft", freeze="stage3")
    """
    data = as_dataset(model, data, validation_data)
    recipe = get_recipe(recipe, **changes)
    freeze_backbone(model, freeze, train_norm)  # refuse before writing
    check_trained_norm(model, recipe.optimizer)
    if recipe.random_resized_crop:
        side = model.get_layer("backbone").input_shape[1]
        recipe = replace(recipe, random_resized_crop=side)
    head_recipe = _head_recipe(recipe, head_epochs, head_learning_rate)
    phases = [("head", "all", head_recipe)] if head_epochs else []
    phases.append(("tuned", freeze, recipe))
    weights = class_weights(class_weight, data)
    plan: dict[str, Any] = {
        "recipe": recipe,
        "freeze": freeze,
        "head_epochs": head_recipe.epochs if head_epochs else 0,
        "head_learning_rate": head_recipe.learning_rate,
        "train_norm": train_norm,
        "cache_features": cache_features,
        "class_weight": dict(enumerate(weights)) if weights else None,
        "seed": checked_seed(seed),
        "deterministic": deterministic,
        "devices": devices,
    }
    if cache_features and hosts.count() > 1:
        raise InputError(
            "cache_features=True works in one process only: omit it"
        )
    directory = (
        None if output_dir is None else PhasedDirectory(Path(output_dir))
    )
    started: list[str] = []
    with contextlib.ExitStack() as stack:
        if resume:
            started = _resume(directory, plan, model)
        with hosts.together():
            if directory and not resume and hosts.is_first():
                directory.check_unused()
                stack.enter_context(directory.planned(plan))
        for name, frozen, phase_recipe in phases:
            if name in started[:-1]:
                continue
            freeze_backbone(model, frozen, train_norm)
            if verbose:
                print(f"phase {name}, epochs: {phase_recipe.epochs}")
            options = {
                "output_dir": directory and directory.phase(name).path,
                "class_weight": plan["class_weight"],
                "callbacks": callbacks,
                "seed": seed,
                "resume": name in started,
                "verbose": verbose,
            }
            if cache_features and frozen == "all":
                run = train_head(model, data, phase_recipe, **options)
                continue
            options["deterministic"] = plan["deterministic"]
            options["devices"] = plan["devices"]
            options["backup_every"] = backup_every
            run = train(model, data, phase_recipe, **options)
    return run


def _head_recipe(recipe, epochs, learning_rate):
    """Returns the recipe of the first phase, checked even if it is skipped."""
    if isinstance(epochs, int) and epochs < 0:
        raise InputError(f"head_epochs={epochs}: must be at least 0")
    try:
        return get_recipe(
            recipe, epochs=epochs or None, learning_rate=learning_rate
        )
    except InputError as error:
        raise InputError(f"head_{error}") from None


def _resume(directory, plan, model):
    """Completes a plan from a run's; returns the phases that have started."""
    if directory is None:
        raise InputError("resume=True needs the output_dir= of a run")
    saved = directory.read_plan()
    # As in `train`, a resumed run stays deterministic, and may become so.
    # Unlike in `train`, the number of epochs may not change.
    old, new = (
        each | {"recipe": asdict(recipe), "epochs": recipe.epochs}
        for each, recipe in ((saved, saved["recipe"]), (plan, plan["recipe"]))
    )
    run_directory.check_same(
        old, new | {"deterministic": None, "devices": None}
    )
    plan["class_weight"] = saved.get("class_weight")
    plan["deterministic"] |= saved.get("deterministic", False)
    if plan["devices"] is None:
        plan["devices"] = saved.get("devices")
    started = directory.started_phases()
    if started:  # a second phase keeps what the first started from
        config = directory.phase(started[0]).read_config()
        model.pretrained = config.get("weights")
    return started
