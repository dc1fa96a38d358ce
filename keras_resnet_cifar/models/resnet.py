"""`build_resnet`: a ResNet by name or by its parts, optionally with weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.models.architectures import resolve
from keras_resnet_cifar.models.nets import assemble, check_head
from keras_resnet_cifar.models.pretrained import copy_weights, load_donor


def build_resnet(
    arch: str | None = None,
    *,
    depth: int | None = None,
    block: str | None = None,
    preactivation: bool | None = None,
    shortcut: str | None = None,
    widths: Sequence[int] | None = None,
    stage_blocks: Sequence[int] | None = None,
    stem: str | None = None,
    stem_width: int | None = None,
    final_norm: bool | None = None,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    input_shape: tuple[int | None, int | None, int] | None = None,
    normalization: Any = "auto",
    activation: str | None = None,
) -> keras.Model:
    """Builds a ResNet from the literature as a functional `keras.Model`.

    The model takes raw images `[N, H, W, 3]` (or `[N, H, W, 1]`), uint8 or
    float, 0 to 255, normalizes them, and returns logits `[N, num_classes]`,
    which are float32 even under a mixed precision policy. It consists of stock
    Keras layers only.

    Args:
        arch: A name such as `"resnet20"`: one of `list_architectures()`, or
            `resnet{depth}` followed by any of `-bottleneck`, `-preact`, a
            shortcut (`-identity`, `-projection` or `-conv3x3`) and `-imagenet`.
        depth: Instead of a name, the number of weight layers on the main path:
            6n+2 (basic), 9n+2 (bottleneck), or 18, 34, 50, 101, 152 for
            four-stage nets.
        block: `"basic"` (3x3, 3x3) or `"bottleneck"` (1x1, 3x3, 1x1, the last
            four times as wide).
        preactivation: Whether BatchNorm and ReLU precede each convolution.
        shortcut: `"identity"` (option A: subsampled, zero-padded),
            `"projection"` (option B: 1x1) or `"conv3x3"`, where the shape
            changes.
        widths: Filters of each stage, before a bottleneck's expansion.
        stage_blocks: Blocks of each stage.
        stem: `"cifar"` (3x3) or `"imagenet"` (7x7 stride 2, max pooling).
        stem_width: Filters of the stem; by default those of the first stage.
        final_norm: `False` omits the BatchNorm and ReLU at the end of a
            pre-activation net, as in kuangliu/pytorch-cifar.
        weights: Trained weights, as in `keras.applications`: a name that
            `list_weights()` has for this net, a file (`.keras`, or a PyTorch
            checkpoint), `"hf://user/name"` on the Hugging Face Hub, or `None`
            for random initialization.
        num_classes: Size of the output; by default that of the weights, or 10.
        input_shape: `(H, W, 3)`, or `(H, W, 1)` for grayscale; by default
            `(32, 32, 3)`, or `(224, 224, 3)` with the ImageNet stem. H and W
            may be `None`, for images of any size.
        normalization: The name of a dataset (its channel statistics),
            `"imagenet"`, `(mean, std)` for images from 0 to 1, `"per_image"`,
            or `None` (only scaled to 0 to 1). `"auto"` is that of the weights;
            without weights, it is CIFAR-10's for RGB, and `None` for grayscale.
        activation: Activation of the head: `None` for logits, or e.g.
            `"softmax"`.

    Returns:
        A `keras.Model` named after the architecture, built, not compiled.
        Nets of more than 54 blocks hold their blocks in sub-models.

    Raises:
        InputError: No net has this name or depth (the message suggests
            others), the arguments contradict each other, or the weights are
            unknown, damaged, not available or for another net.

    Examples:
        >>> model = build_resnet("resnet20")
        >>> model.count_params()  # 269,722 and the BatchNorm statistics
        271098
        >>> model = build_resnet("resnet20", weights="cifar10")
    """
    net = resolve(
        arch,
        depth=depth,
        block=block,
        preactivation=preactivation,
        shortcut=shortcut,
        widths=widths,
        stage_blocks=stage_blocks,
        stem=stem,
        stem_width=stem_width,
        final_norm=final_norm,
    )
    if num_classes is not None:
        check_head(num_classes, activation)
    auto = isinstance(normalization, str) and normalization == "auto"
    shape = input_shape if isinstance(input_shape, tuple | list) else ()
    channels = tuple(shape[2:])
    donor = None
    if weights is not None:
        given = None if auto else normalization
        donor = load_donor(weights, net.name, num_classes, given)
        if channels not in ((), donor.input_shape[3:]):
            raise InputError(
                f"weights={str(weights)!r} are for {donor.input_shape[3]} "
                f"channels, not for input_shape={input_shape}"
            )
        num_classes = donor.output_shape[-1]
        normalization = donor.get_layer("normalization") if auto else given
    elif auto:
        normalization = None if channels == (1,) else "cifar10"
    classes = 10 if num_classes is None else num_classes
    model = assemble(net, classes, input_shape, normalization, activation)
    if donor is not None:
        copy_weights(donor, model)
    return model
