"""Evaluates models on a split: logits by Keras, metrics by NumPy, pictures."""

import keras
import numpy as np

from keras_resnet_cifar.data.batches import RESIDENT_BYTES, even_batch_size
from keras_resnet_cifar.device import has_accelerator, jit_compile
from keras_resnet_cifar.evaluation.metrics import most_confident_mistakes, score
from keras_resnet_cifar.evaluation.plots import plot_confusion, plot_mistakes
from keras_resnet_cifar.files import make_folder, write_json
from keras_resnet_cifar.models.saving import check_classifier


def logits_of(model, images, batch_size=None, callbacks=()):
    """Returns the model's logits as float32 `[N, classes]`.

    Args:
        model: From raw images to logits, as of `build_resnet`.
        images: uint8 or float `[N, H, W, 3]`, 0 to 255.
        batch_size: Images a step; by default one that divides N.
        callbacks: Keras callbacks of `predict`.
    """
    batch_size = batch_size or even_batch_size(len(images))
    on_jax = keras.backend.backend() == "jax"
    if on_jax and has_accelerator() and images.nbytes <= RESIDENT_BYTES:
        from keras_resnet_cifar.training import jax_steps as fused_steps

        logits = fused_steps.predict(model, images, batch_size)
        return np.asarray(logits, "float32")
    held = model.jit_compile
    model.jit_compile = jit_compile()
    try:
        logits = model.predict(
            images,
            batch_size=batch_size,
            verbose=0,
            callbacks=list(callbacks),
        )
    finally:
        model.jit_compile = held
    return np.asarray(logits, "float32")


def _predict_on_jax(model, images, batch_size):
    """Returns the outputs of a model for all images, in one call.

    Args:
        model: A Keras model. What is compiled for it stays with it.
        images: `[N, H, W, C]`; a copy goes to the device, whole.
        batch_size: Images a step.

    Returns:
        A NumPy array `[N, ...]`.
    """
    count = len(images)
    padding = -count % batch_size
    batches = np.concatenate([images, images[:1].repeat(padding, axis=0)])
    batches = batches.reshape(-1, batch_size, *images.shape[1:])
    if not hasattr(model, "fused_predict_function"):
        model.fused_predict_function = _predict_function(model)
    variables = [
        [variable.value for variable in held]
        for held in (model.trainable_variables, model.non_trainable_variables)
    ]
    outputs = np.asarray(model.fused_predict_function(*variables, batches))
    return outputs.reshape(-1, *outputs.shape[2:])[:count]


def _predict_function(model):
    import jax

    @jax.jit
    def run(trainable, other, batches):
        def outputs(batch):
            return model.stateless_call(trainable, other, batch)[0]

        return jax.lax.map(outputs, batches)

    return run


def evaluate(model, split, class_names, batch_size=None, callbacks=()):
    """Returns the `Evaluation` of a model on a split.

    Raises:
        InputError: The model's classes are not the split's, or its logits
            are not finite.
    """
    check_classifier(model, len(class_names), split.images.shape[1:])
    logits = logits_of(model, split.images, batch_size, callbacks)
    return score(logits, split.labels, class_names)


def report(model, split, class_names, folder, mistakes=25):
    """Evaluates a model and writes metrics.json and two pictures.

    Args:
        model: From raw images to logits.
        split: A `Split`.
        class_names: One name per class.
        folder: Where metrics.json, confusion.png and mistakes.png go.
        mistakes: How many of the most confident mistakes to draw.

    Returns:
        The `Evaluation`.

    Raises:
        InputError: As `evaluate`, or the folder cannot be written.
    """
    check_classifier(model, len(class_names), split.images.shape[1:])
    make_folder(folder)
    logits = logits_of(model, split.images)
    result = score(logits, split.labels, class_names)
    wrong = most_confident_mistakes(logits, split.labels, mistakes)
    write_json(folder / "metrics.json", result.to_json())
    plot_confusion(result.confusion, class_names, folder / "confusion.png")
    plot_mistakes(
        split.images[wrong.indices],
        split.labels[wrong.indices],
        wrong.predicted,
        wrong.probabilities,
        class_names,
        folder / "mistakes.png",
    )
    return result
