"""Evaluates a model on a split: logits, metrics and files with the results."""

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet_cifar.data.batches import RESIDENT_BYTES, even_batch_size
from keras_resnet_cifar.data.load import Dataset
from keras_resnet_cifar.data.splits import Split, checked_split, paired
from keras_resnet_cifar.device import has_accelerator
from keras_resnet_cifar.errors import InputError, check_name
from keras_resnet_cifar.evaluation import plots
from keras_resnet_cifar.evaluation.calibration import fit_temperature
from keras_resnet_cifar.evaluation.corruptions import (
    SEVERITIES,
    STANDARD,
    corrupted,
    some_of,
)
from keras_resnet_cifar.evaluation.metrics import (
    TEST_TIME_AUGMENTATIONS,
    Evaluation,
    checked,
    most_confident_mistakes,
    reliability,
    score,
)
from keras_resnet_cifar.files import write_json
from keras_resnet_cifar.models.saving import (
    check_classifier,
    check_names,
    names_of,
)

# The compiled predictor of each live model. It refers to the model's layers,
# never to the model itself.
_PREDICTORS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def logits_of(
    model: keras.Model,
    images: np.ndarray,
    batch_size: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> np.ndarray:
    """Returns the outputs of a model for images; the model is not modified.

    Args:
        model: A functional or Sequential model from raw images to logits. It
            is compiled once; later calls reuse the compiled function.
        images: uint8 or float `[N, H, W, channels]`, 0 to 255.
        batch_size: Images per step; by default a number that divides N.
        callbacks: Keras callbacks, called as by `Model.predict`.

    Returns:
        float32 `[N, outputs]`.

    Raises:
        InputError: There are no images, or the model is a subclassed one.
    """
    shape = np.shape(images)
    if len(shape) != 4:
        raise InputError(
            f"images are {shape}: give [N, H, W, channels], which is "
            "images[None] for one image"
        )
    if not shape[0]:
        raise InputError("there are no images to evaluate: give at least one")
    output, predictor = _PREDICTORS.get(model, (None, None))
    if output is None or output is not model.outputs[0]:  # it has changed
        if not getattr(model, "inputs", None):
            raise InputError(
                f"{model.name} has no graph of layers: give a functional or "
                "Sequential model"
            )
        # The same layers in another model, so that `model` is not compiled.
        own = keras.Model(model.inputs, model.outputs[0])
        on_jax = keras.backend.backend() == "jax"
        predictor = _jax_predictor(own) if on_jax else _predictor(own)
        _PREDICTORS[model] = model.outputs[0], predictor
    batch_size = batch_size or even_batch_size(len(images))
    outputs = predictor(images, batch_size, list(callbacks))
    return np.asarray(outputs, "float32")


def _predictor(own):
    """Returns `(images, batch_size, callbacks) -> outputs` by Keras."""
    own.compile()

    def predict(images, batch_size, callbacks):
        # PyTorch keeps its training flag in each layer.
        flags = [(x, x.training) for x in getattr(own, "modules", list)()]
        try:
            return own.predict(images, batch_size, 0, callbacks=callbacks)
        finally:
            for module, training in flags:
                module.training = training

    return predict


def _jax_predictor(own):
    """Returns the same for JAX, with as many batches per call as fit.

    `Model.predict` dispatches each batch separately, and empties the model's
    variables until it ends, which an exception in a callback would prevent.
    """
    import jax

    @jax.jit
    def run(weights, batches):
        def outputs_of(batch):
            return own.stateless_call(*weights, batch, training=False)[0]

        return jax.lax.map(outputs_of, batches)

    def predict(images, batch_size, callbacks):
        count = batch_size
        if has_accelerator():
            count *= max(RESIDENT_BYTES // images[:batch_size].nbytes, 1)
        variables = own.trainable_variables, own.non_trainable_variables
        weights = [[x.value for x in part] for part in variables]
        chain = keras.callbacks.CallbackList(callbacks, model=own)
        chain.on_predict_begin()
        outputs = []
        for start in range(0, len(images), count):
            step = start // batch_size
            chain.on_predict_batch_begin(step)
            group = images[start : start + count]
            logits = run(weights, _in_batches(group, batch_size))
            outputs.append(np.concatenate(np.asarray(logits))[: len(group)])
            chain.on_predict_batch_end(step, {"outputs": outputs[-1]})
        chain.on_predict_end()
        return np.concatenate(outputs)

    return predict


def _in_batches(images, batch_size):
    """Reshapes to `[batches, batch_size, ...]`; copies only to pad."""
    padding = -len(images) % batch_size
    if padding:
        images = np.concatenate([images, images[:1].repeat(padding, axis=0)])
    return images.reshape(-1, batch_size, *images.shape[1:])


def split_logits(
    model: keras.Model,
    split: Split,
    class_names: Sequence[str],
    tta: str = "none",
    *options: Any,
) -> np.ndarray:
    """Returns the logits of a split; arguments and errors as of `evaluate`."""
    check_name("tta", tta, TEST_TIME_AUGMENTATIONS)
    check_classifier(model, len(class_names), split.images.shape[1:])
    check_names(model, class_names)
    known = getattr(model, "class_names", None) or class_names
    if {*known}.isdisjoint(class_names) and not class_names[0].isdigit():
        warnings.warn(
            f"{model.name} was trained on other classes ({known[0]}, ...) than "
            f"those of the images ({class_names[0]}, ...)",
            stacklevel=3,
        )
    logits = logits_of(model, split.images, *options)
    if tta == "flip":
        logits += logits_of(model, split.images[:, :, ::-1], *options)
        logits /= 2
    return logits


def evaluate(
    model: keras.Model,
    split: Split | Dataset | tuple,
    class_names: Sequence[str] | None = None,
    batch_size: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    tta: str = "none",
) -> Evaluation:
    """Evaluates a model on a split; the model is not modified.

    Args:
        model, batch_size, callbacks: See `logits_of`.
        split: A `Split` or `(images, labels)`, as `Dataset.from_arrays` takes
            them, or a `Dataset`, whose test split is used.
        class_names: One name per class; by default those of the `Dataset`,
            else of the model, else numbers.
        tta: Test-time augmentation: `"none"`, or `"flip"` to average the logits
            of each image and its mirror image. Do not compare accuracies with
            and without it.

    Returns:
        An `Evaluation`.

    Raises:
        InputError: The model does not fit the classes or the images, its
            logits are not finite, `tta` is unknown, the images or labels are
            invalid, or there is no test split.
    """
    check_classifier(model)
    if isinstance(split, Dataset):
        if class_names is None:
            class_names = split.class_names
        if split.test is None:
            raise InputError(
                f"{split.name} has no test split: give another, such as "
                "split=data.validation"
            )
        split = split.test
    elif not isinstance(split, Split):
        split = Split(*paired("split", split))
    if class_names is None:
        class_names = names_of(model)
    check_classifier(model, len(class_names))
    split = checked_split("split", split.images, split.labels, len(class_names))
    logits = split_logits(model, split, class_names, tta, batch_size, callbacks)
    return score(logits, split.labels, class_names)


def report(
    logits: np.ndarray,
    split: Split,
    class_names: Sequence[str],
    folder: Path,
    mistakes: int = 25,
) -> Evaluation:
    """Writes metrics.json, confusion.png and mistakes.png.

    `mistakes` is the number of most confident mistakes to draw.
    """
    result = score(logits, split.labels, class_names)
    wrong = most_confident_mistakes(logits, split.labels, mistakes)
    write_json(folder / "metrics.json", result.to_json())
    plots.plot_confusion(
        result.confusion, class_names, folder / "confusion.png"
    )
    plots.plot_mistakes(split, wrong, class_names, folder / "mistakes.png")
    return result


def calibrate(
    held_out: tuple[np.ndarray, np.ndarray],
    measured: tuple[np.ndarray, np.ndarray],
    folder: Path,
) -> dict[str, float]:
    """Fits a temperature; writes calibration.json and reliability.png.

    The two pairs are logits and labels. The temperature is fitted on
    `held_out`, whose images the model must not have been trained on; loss and
    calibration error are those of `measured`. Returns the content of
    calibration.json, in which `fitted_on` is a number of images.
    """
    temperature = fit_temperature(*held_out)
    logits, labels = measured
    scaled = {"before": logits, "after": logits / temperature}
    names = list(map(str, range(logits.shape[1])))
    values = {"temperature": temperature, "fitted_on": len(held_out[0])}
    bins = {}
    for when, each in scaled.items():
        result = score(each, labels, names)
        values |= {f"loss_{when}": result.loss, f"ece_{when}": result.ece}
        label = f"{when}: calibration error {result.ece:.4f}"
        bins[label] = reliability(each, labels)
    write_json(folder / "calibration.json", values)
    plots.plot_reliability(bins, folder / "reliability.png")
    return values


def evaluate_corruptions(
    model: keras.Model,
    split: Split,
    class_names: Sequence[str],
    folder: Path,
    files: Mapping[str, Split] | None = None,
    images: int = 1000,
    tta: str = "none",
    each: Callable[[str, list[float]], None] = lambda name, accuracies: None,
) -> dict[str, Any]:
    """Evaluates corrupted images; writes corruptions.json and corruptions.png.

    `files` and `images` are `files` and `count` of `corrupted`; `each` is
    called with a name and its accuracies as soon as they are known. Returns the
    content of corruptions.json. Its `mean_corruption_error`, 0 to 1, is over
    the 15 corruptions of Hendrycks and Dietterich and the five severities, and
    not divided by another net's.
    """
    clean = some_of(split, images)
    top1 = evaluate(model, clean, class_names, tta=tta).top1
    each("none", [top1])
    accuracy: dict[str, list[float]] = {}
    for name, part in corrupted(split, files, images):
        logits = split_logits(model, part, class_names, tta)
        logits, labels = checked(logits, part.labels)
        right = (logits.argmax(axis=1) == labels).reshape(len(SEVERITIES), -1)
        accuracy[name] = right.mean(axis=1).tolist()
        each(name, accuracy[name])
    standard = [accuracy[name] for name in STANDARD]
    values = {
        "images": right.shape[1],
        "source": "files" if files else "made",
        "tta": tta,
        "clean": top1,
        "accuracy": accuracy,
        "mean_corruption_error": 1 - float(np.mean(standard)),
    }
    write_json(folder / "corruptions.json", values)
    plots.plot_corruptions(accuracy, top1, folder / "corruptions.png")
    return values
