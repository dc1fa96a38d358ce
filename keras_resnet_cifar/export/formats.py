"""Writes a model in each format, in a process whose backend is TensorFlow.

    KERAS_BACKEND=tensorflow python -m keras_resnet_cifar.export.formats JOB

`export.py` fills the folder JOB and runs this: the caller's Keras may run on
JAX or PyTorch, and the converters write to stderr, and crash, as they like.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation.evaluate import logits_of
from keras_resnet_cifar.evaluation.metrics import softmax
from keras_resnet_cifar.export.serving import (
    classifier,
    image_spec,
    write_saved_model,
    write_warmup_requests,
)
from keras_resnet_cifar.models.resnet import leaf_layers
from keras_resnet_cifar.models.saving import check_classifier, load_model


@dataclass(frozen=True)
class _Job:
    """What to write.

    Attributes:
        class_names: One name per class.
        size: `(H, W)` of the images.
        int8: Whether to quantise; LiteRT only.
        calibration: A `.npy` file of images to quantise by.
        model_name: What a server calls the model.
        folder: Where the files go; it exists and is empty.
    """

    class_names: list
    size: tuple
    int8: bool
    calibration: Path
    model_name: str
    folder: Path


def main(folder):
    """Does a job; returns the exit code, 2 for what a user can mend.

    The folder holds `job.json` (see `export._run_job`), `images.npy` and, to
    quantise, `calibration.npy`. It gets `reference.npy`, the probabilities
    float32 `[N, C]` of the images by the Keras model.
    """
    try:
        _work(Path(folder))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _work(folder):
    asked = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    images = np.load(folder / "images.npy")
    model = load_model(Path(asked["model"]))
    names = asked["class_names"] or list(map(str, range(model.output_shape[1])))
    check_classifier(model, len(names), images.shape[1:])
    model = _in_float32(model)
    probabilities = softmax(logits_of(model, images)).astype("float32")
    np.save(folder / "reference.npy", probabilities)
    job = _Job(
        class_names=names,
        size=images.shape[1:3],
        int8=asked["int8"],
        calibration=folder / "calibration.npy",
        model_name=asked["model_name"],
        folder=Path(asked["folder"]),
    )
    try:
        _WRITERS[asked["format"]](model, job)
    except (OSError, tf.errors.OpError) as error:
        # TensorFlow's begin with the op and the file; the cause comes last.
        told = getattr(error, "strerror", None) or str(error).split("; ")[-1]
        raise InputError(
            f"cannot write {asked['target']}: {' '.join(told.split())[:200]}; "
            "name a place in a writable folder with free space"
        ) from error


def _in_float32(model):
    """The model, or a copy that computes in float32 throughout."""
    if all(x.compute_dtype == "float32" for x in leaf_layers(model)):
        return model

    def clone(layer):
        config = layer.get_config()
        if not isinstance(layer, keras.layers.InputLayer):
            config["dtype"] = "float32"
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def _write_saved_model(model, job):
    write_saved_model(model, job.class_names, job.size, job.folder)
    if find_spec("tensorflow_serving"):
        write_warmup_requests(job.folder, job.model_name, job.size)


def _write_onnx(model, job):
    import onnx
    from tf2onnx.convert import from_graph_def

    # Frozen here: tf2onnx takes constants that Keras made eagerly, such as
    # the mean of Normalization, for further inputs.
    graph = _frozen(_classes_only(model, job), image_spec(job.size))
    names = {graph.inputs[0].name: "image"}
    names[graph.outputs[0].name] = "probabilities"
    proto, _ = from_graph_def(
        graph.graph.as_graph_def(),
        input_names=[graph.inputs[0].name],
        output_names=[graph.outputs[0].name],
    )
    _rename(proto.graph, names)
    onnx.checker.check_model(proto)
    onnx.save(proto, job.folder / "model.onnx")
    _write_labels(job)


def _frozen(function, spec):
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    concrete = tf.function(function).get_concrete_function(spec)
    return convert_variables_to_constants_v2(concrete)


def _rename(graph, names):
    """Renames the inputs and outputs of an ONNX graph, and their batch."""
    for value in (*graph.input, *graph.output):
        value.name = names[value.name]
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for node in graph.node:
        for ports in (node.input, node.output):
            ports[:] = [names.get(name, name) for name in ports]


def _write_litert(model, job):
    dtype = tf.float32 if job.int8 else tf.uint8
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default",
        _classes_only(model, job),
        [image_spec(job.size, dtype)],
    )
    with tempfile.TemporaryDirectory() as temporary:
        archive.write_out(temporary, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(temporary)
        if job.int8:
            _quantise(converter, np.load(job.calibration))
        content = converter.convert()
    (job.folder / "model.tflite").write_bytes(content)
    _write_labels(job)


def _quantise(converter, images):
    """Sets a converter to whole numbers throughout; raw images go in."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.representative_dataset = lambda: (
        [image[None].astype("float32")] for image in images
    )
    converter.inference_input_type = tf.uint8


def _classes_only(model, job):
    """What phones and ONNX serve: no strings, `labels.txt` has the names."""
    classify = classifier(model, job.class_names)
    return lambda image: {"probabilities": classify(image)["probabilities"]}


def _write_labels(job):
    text = "".join(f"{name}\n" for name in job.class_names)
    (job.folder / "labels.txt").write_text(text, encoding="utf-8")


_WRITERS = {
    "saved_model": _write_saved_model,
    "onnx": _write_onnx,
    "litert": _write_litert,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
