"""Fine-tuning: a pretrained backbone, a new head, two phases of training."""

import numbers
import re
from dataclasses import dataclass, replace
from pathlib import Path

import keras
from keras import layers

from keras_resnet_cifar.errors import InputError, unknown
from keras_resnet_cifar.finetuning.backbones import FREEZE
from keras_resnet_cifar.finetuning.features import finished_head, train_head
from keras_resnet_cifar.finetuning.phases import PhasedDirectory
from keras_resnet_cifar.finetuning.pretrained import load_backbone
from keras_resnet_cifar.models.normalization import preprocess_input
from keras_resnet_cifar.models.resnet import check_head, head, leaf_layers
from keras_resnet_cifar.training.backups import DEFAULT_INTERVAL
from keras_resnet_cifar.training.recipes import (
    FINETUNING,
    Recipe,
    checked_seed,
    get_recipe,
)
from keras_resnet_cifar.training.train import train

_STEM, _END = 0, 5  # before the first stage, after the last


def build_finetuned(
    backbone,
    num_classes,
    *,
    weights="imagenet",
    image_size=None,
    input_shape=(32, 32, 3),
    freeze="none",
    train_norm=False,
):
    """Builds a classifier from a pretrained backbone and a new head.

    The model takes raw images, uint8 or float in 0 to 255, of `input_shape`,
    resizes them (bilinear), prepares them as the backbone's weights want them
    and returns float32 logits `[N, num_classes]`. It consists of stock Keras
    layers only.

    Args:
        backbone: A name of `BACKBONES`, or a `.keras` file of a net of this
            package, whose normalisation and weights are taken.
        num_classes: Size of the output.
        weights: `"imagenet"`, `"none"` or a file, see `load_backbone`.
        image_size: Side of the images at which the backbone works; by default
            224, for a `.keras` file what its net was built for.
        input_shape: `(H, W, 3)` of the images.
        freeze, train_norm: See `freeze_backbone`.

    Returns:
        A `keras.Model` named "finetuned-BACKBONE", built, not compiled.

    Raises:
        InputError: A name, file or size that does not do.

    Example:
        >>> model = build_finetuned("resnet50", num_classes=100)
    """
    check_head(num_classes)
    _check_freeze(freeze)
    base, preprocessing, side = load_backbone(backbone, weights, image_size)
    inputs = keras.Input(input_shape, name="image")
    x = inputs
    if tuple(input_shape[:2]) != (side, side):
        x = layers.Resizing(side, side, dtype="float32", name="resize")(x)
    if preprocessing:
        x = preprocess_input(x, preprocessing)
    x = base(x) if train_norm else base(x, training=False)  # BatchNorm's mode
    name = f"finetuned-{Path(backbone).stem}"
    model = keras.Model(inputs, head(x, num_classes), name=name)
    freeze_backbone(model, freeze, train_norm)
    return model


def freeze_backbone(model, freeze="all", train_norm=False):
    """Sets which weights of a fine-tuned model train; the head always does.

    The backbone's BatchNorm layers stay in inference mode, whatever `freeze`:
    neither their statistics nor their scale and offset move. They are frozen
    themselves, for calling the backbone with `training=False` is not enough:
    Keras (3.15.1) hands `fit`'s `training=True` to each layer of a functional
    model, over what it was called with.

    Args:
        model: Of `build_finetuned`, or loaded from a file of one.
        freeze: What stays as it is: `"all"` (the whole backbone), `"stage1"`
            to `"stage4"` (the stem and the stages up to that one) or
            `"none"`.
        train_norm: Train BatchNorm as well where the layers around it train,
            statistics included: for random weights, which need it. (The model
            must have been built so.)

    Raises:
        InputError: An unknown `freeze`, a stage that the backbone lacks, or
            another kind of model.
    """
    _check_freeze(freeze)
    base = _backbone(model)
    leaves = [layer for layer in leaf_layers(base) if layer.weights]
    stages = {stage_of(layer.name) for layer in leaves} - {_STEM, _END}
    known = {"all": _END, "none": -1, **{f"stage{s}": s for s in stages}}
    if freeze not in known:
        raise InputError(
            f"freeze={freeze}: the backbone has {len(stages)} stages; give "
            f"one of {', '.join(known)}"
        )
    model.trainable = True
    for layer in leaves:
        norm = isinstance(layer, layers.BatchNormalization)
        held = norm and not train_norm
        layer.trainable = stage_of(layer.name) > known[freeze] and not held


def _check_freeze(freeze):
    if freeze not in FREEZE:
        raise unknown("freeze", freeze, FREEZE)


def stage_of(name):
    """Stage of a backbone's layer by its name: 1 to 4, 0 for the stem.

    Ours are `stage1_block0_...`, those of keras.applications
    `conv2_block1_...`. What follows the last stage, the BatchNorm at the end
    of pre-activation nets, is 5.
    """
    match = re.match(r"(stage|conv)(\d+)_block", name)
    if match:
        return int(match[2]) - (match[1] == "conv")
    return _STEM if name.startswith(("stem", "conv1")) else _END


def _backbone(model):
    try:
        return model.get_layer("backbone")
    except (AttributeError, ValueError):
        raise InputError(
            f"{getattr(model, 'name', model)} has no backbone to freeze: build "
            "it with build_finetuned"
        ) from None


def finetune(
    model,
    data,
    recipe=FINETUNING,
    output_dir=None,
    *,
    freeze="none",
    head_epochs=2,
    head_learning_rate=None,
    train_norm=False,
    cache_features=False,
    seed=0,
    resume=False,
    backup_every=DEFAULT_INTERVAL,
    deterministic=False,
    verbose=True,
    **changes,
):
    """Trains the head on the frozen backbone, then what `freeze` leaves.

    Each phase is a run of its own by the same recipe: the head's in
    `output_dir/head`, then that of all that trains in `output_dir/tuned`.

    Args:
        model: Of `build_finetuned`.
        data: A `Dataset`.
        recipe: A name of `RECIPES` or a `Recipe`. Where it crops by
            `random_resized_crop`, the crop has the backbone's image size.
        output_dir: Folder of both phases; `None` keeps nothing.
        freeze: What stays frozen in the second phase, see `freeze_backbone`.
        head_epochs: Epochs of the first phase; 0 leaves it out.
        head_learning_rate: Its rate; by default the recipe's.
        train_norm: See `freeze_backbone`.
        cache_features: Compute the features of a wholly frozen backbone once,
            for an epoch in seconds; without augmentation. It concerns the
            first phase, and with `freeze="all"` the second.
        seed: Of shuffling and augmentation.
        resume: Go on with the run in `output_dir`.
        backup_every, deterministic: As of `train`.
        verbose: Print a line an epoch.
        **changes: Fields of the recipe to replace; `learning_rate` is that of
            the second phase.

    Returns:
        The `Run` of the last phase.

    Raises:
        InputError, Diverged: As `train` and `freeze_backbone`.

    Example:
        >>> model = build_finetuned("resnet50", data.num_classes)
        >>> run = finetune(model, data, output_dir="runs/ft", freeze="stage3")
    """
    plan = {
        "recipe": _as_fits(get_recipe(recipe, **changes), model),
        "freeze": freeze,
        "head_epochs": _whole(head_epochs),
        "head_learning_rate": head_learning_rate,
        "train_norm": train_norm,
        "cache_features": cache_features,
        "seed": checked_seed(seed),
        "deterministic": deterministic,
    }
    if head_learning_rate is not None:  # without a first phase too
        get_recipe(recipe, learning_rate=head_learning_rate)
    freeze_backbone(model, freeze, train_norm)  # refuses before it writes
    directory = output_dir and PhasedDirectory(Path(output_dir))
    begun = _begun(directory, plan) if resume else []
    if directory and not resume:
        directory.check_unused()
    for phase in _phases(plan):
        if phase.name == "head" and "tuned" in begun:
            continue
        freeze_backbone(model, phase.freeze, train_norm)
        run = _run(
            phase,
            model,
            data,
            plan,
            directory,
            phase.name in begun,
            backup_every,
            verbose,
        )
    return run


@dataclass(frozen=True)
class _Phase:
    """A phase: its folder, what is frozen in it, how the rest is trained."""

    name: str
    freeze: str
    recipe: Recipe


def _phases(plan):
    recipe = plan["recipe"]
    tuned = _Phase("tuned", plan["freeze"], recipe)
    if not plan["head_epochs"]:
        return [tuned]
    first = get_recipe(
        recipe,
        epochs=plan["head_epochs"],
        learning_rate=plan["head_learning_rate"],
    )
    return [_Phase("head", "all", first), tuned]


def _begun(directory, plan):
    """Names of the phases that the run to be resumed has begun."""
    if directory is None:
        raise InputError("resume=True needs the output_dir of a run")
    directory.check_same(plan)
    return directory.begun()


def _run(phase, model, data, plan, directory, begun, backup_every, verbose):
    """Runs a phase, or goes on with it; returns its `Run`."""

    def keep_plan(logs=None):
        if directory:
            directory.write_plan(plan)

    seed = plan["seed"]
    folder = directory and directory.phase(phase.name)
    if not (plan["cache_features"] and phase.freeze == "all"):
        return train(
            model,
            data,
            phase.recipe,
            folder and folder.path,
            seed=seed,
            resume=begun,
            backup_every=backup_every,
            deterministic=plan["deterministic"],
            callbacks=[
                keras.callbacks.LambdaCallback(on_train_begin=keep_plan)
            ],
            verbose=verbose,
        )
    if begun:  # it was over in seconds, so it is whole
        return finished_head(model, folder)
    run = train_head(model, data, phase.recipe, folder, seed, verbose)
    keep_plan()
    return run


def _whole(epochs):
    if not isinstance(epochs, numbers.Integral) or epochs < 0:
        raise InputError(f"head_epochs={epochs!r}: give 0 or more")
    return int(epochs)


def _as_fits(recipe, model):
    """The recipe with crops of the size at which the backbone works."""
    if not recipe.random_resized_crop:
        return recipe
    side = _backbone(model).input_shape[1]
    return replace(recipe, random_resized_crop=side)
