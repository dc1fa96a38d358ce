"""Fine-tuning: a pretrained backbone, a new head, two phases of training."""

import re
from dataclasses import replace
from pathlib import Path

import keras
from keras import layers

from keras_resnet_cifar.backbones import FREEZE
from keras_resnet_cifar.errors import InputError, unknown
from keras_resnet_cifar.models import check_head, head, leaf_layers
from keras_resnet_cifar.normalization import preprocess_input
from keras_resnet_cifar.pretrained import load_backbone
from keras_resnet_cifar.recipes import get_recipe
from keras_resnet_cifar.runs import RunDirectory
from keras_resnet_cifar.training import train

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
    base, preprocessing, side = load_backbone(backbone, weights, image_size)
    inputs = keras.Input(input_shape, name="image")
    x = inputs
    if tuple(input_shape[:2]) != (side, side):
        x = layers.Resizing(side, side, dtype="float32", name="resize")(x)
    if preprocessing:
        x = preprocess_input(x, preprocessing)
    x = base(x) if train_norm else base(x, training=False)
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
    if freeze not in FREEZE:
        raise unknown("freeze", freeze, FREEZE)
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
    recipe="coursework-finetune",
    output_dir=None,
    *,
    freeze="none",
    head_epochs=2,
    head_learning_rate=None,
    train_norm=False,
    seed=0,
    resume=False,
    verbose=True,
    **changes,
):
    """Trains the head on the frozen backbone, then what `freeze` leaves.

    Each phase is a run of `train`, by the same recipe: the head in
    `output_dir/head`, then all that trains in `output_dir/tuned`.

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
        seed: Of shuffling and augmentation.
        resume: Go on where the run in `output_dir` ended.
        verbose: Print a line an epoch.
        **changes: Fields of the recipe to replace; `learning_rate` is that of
            the second phase.

    Returns:
        The `Run` of the last phase.

    Raises:
        InputError, Diverged: As `train` and `freeze_backbone`.
    """
    recipe = get_recipe(recipe, **changes)
    if recipe.random_resized_crop:
        recipe = replace(recipe, random_resized_crop=_working_size(model))
    first = get_recipe(
        recipe, epochs=head_epochs or None, learning_rate=head_learning_rate
    )
    phases = [("tuned", freeze, recipe)]
    if head_epochs:
        phases.insert(0, ("head", "all", first))
    freeze_backbone(model, freeze, train_norm)  # refuses before it writes
    if output_dir and not resume:
        RunDirectory(Path(output_dir)).check_unused()
    for name, frozen, recipe in phases:
        freeze_backbone(model, frozen, train_norm)
        directory = output_dir and Path(output_dir) / name
        run = train(
            model,
            data,
            recipe,
            directory,
            seed=seed,
            resume=resume and RunDirectory(directory).config.is_file(),
            verbose=verbose,
        )
    return run


def _working_size(model):
    """Side of the images at which the backbone of a model works."""
    return _backbone(model).input_shape[1]
