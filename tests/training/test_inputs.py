"""Data of one's own: arrays, tf.data, PyDataset, and weights of classes."""

import math

import keras
import numpy as np
import pytest
from helpers import refusal

from keras_resnet_cifar.errors import Diverged, Stopped
from keras_resnet_cifar.training.inputs import as_dataset, class_weights
from keras_resnet_cifar.training.train import train
from keras_resnet_cifar.training.training_model import TrainingModel

SHORT = {"epochs": 2, "batch_size": 64, "precision": "float32"}


class Batches(keras.utils.PyDataset):
    """Batches of arrays, in their order."""

    def __init__(self, images, labels):
        super().__init__()
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels) // 64

    def __getitem__(self, index):
        part = slice(64 * index, 64 * (index + 1))
        return self.images[part], self.labels[part]


def tf_data(images, labels):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(64)


def one_hot(images, labels):
    return Batches(images, np.eye(10, dtype="float32")[labels])


def test_arrays_train_as_a_dataset_does(tiny_model, tiny_data, tmp_path):
    split, held_out = tiny_data.train, tiny_data.validation
    with_name = train(tiny_model(), tiny_data, verbose=False, **SHORT)
    run = train(
        tiny_model(),
        (split.images.astype("float32"), split.labels[:, None]),
        output_dir=tmp_path / "run",
        validation_data=(held_out.images, held_out.labels),
        verbose=False,
        **SHORT,
    )
    assert run.metrics == {}  # there is no test split
    card = (run.directory / "README.md").read_text()
    assert "had the best accuracy on the validation split" in card
    assert "test split" not in card
    assert run.config["dataset"]["fingerprints"]["train"]
    for row, other in zip(run.history, with_name.history, strict=True):
        assert row["val_loss"] == pytest.approx(other["val_loss"], rel=1e-3)


def test_arrays_keep_the_class_names_of_the_model(tiny_model, tiny_data):
    model, split = tiny_model(), tiny_data.train
    model.class_names = tiny_data.class_names
    data = as_dataset(model, (split.images, split.labels))
    assert data.class_names == tiny_data.class_names


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(Batches, marks=pytest.mark.slow),
        tf_data,
        pytest.param(one_hot, marks=pytest.mark.slow),
    ],
    ids=["Batches", "tf_data", "one_hot"],
)
def test_a_stream_trains_and_resumes_at_its_epochs(
    stream, tiny_model, tiny_data, tmp_path, capsys
):
    data = stream(tiny_data.train.images, tiny_data.train.labels)

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if len(self.model.history.epoch) == 1:
                raise Stopped(15)

    with pytest.raises(Stopped):
        train(
            tiny_model(), data, output_dir=tmp_path, callbacks=[Stop()], **SHORT
        )
    assert "resumes from its last complete epoch" in capsys.readouterr().out
    run = train(
        tiny_model(seed=1), data, output_dir=tmp_path, resume=True, **SHORT
    )
    assert [row["epoch"] for row in run.history] == [1, 2]
    assert np.isfinite(run.history[-1]["loss"])


def test_a_stream_with_a_label_out_of_range_does_not_train(
    tiny_model, tiny_data
):
    labels = tiny_data.train.labels.astype("int32")
    labels[-64:] += 10  # in a batch that is not the first
    data = Batches(tiny_data.train.images, labels)
    with pytest.raises(Diverged, match="check that labels are below 10"):
        train(tiny_model(), data, verbose=False, **SHORT)


def test_a_stream_has_no_images_to_mirror_in_turn(tiny_model, tiny_data):
    data = Batches(tiny_data.train.images, tiny_data.train.labels)
    options = SHORT | {"alternating_flip": True}
    message = refusal(lambda: train(tiny_model(), data, **options))
    assert "alternating_flip=False" in message


def test_balanced_weights_even_out_the_classes(tiny_data):
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    images = np.full((100, 8, 8, 3), 9, "uint8")
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(4))
    data = as_dataset(model, (images, labels))
    weights = class_weights("balanced", data)
    assert weights == pytest.approx([100 / 180, 100 / 90, 100 / 30, 0])
    counts = np.bincount(labels, minlength=4)
    assert weights @ counts == pytest.approx(100)
    assert class_weights({1: 3}, data) == [1.0, 3.0, 1.0, 1.0]
    assert class_weights(None, data) is None
    for wrong in (0.7, float("inf"), 4):
        assert "class_weight=" in refusal(class_weights, {wrong: 5}, data)


def test_weights_enter_the_loss_of_training():
    net = keras.Sequential()
    trained = TrainingModel(net, net, 1, class_weight=[1.0, 2.0, 4.0])
    targets = np.array([[0, 0, 1], [0.5, 0.5, 0]], "float32")
    _, same, weights = trained.augment(None, targets)
    np.testing.assert_array_equal(same, targets)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(weights), [4, 1.5])


@pytest.mark.slow
def test_weights_are_kept_on_resume(tiny_model, tiny_data, tmp_path):
    options = {"verbose": False, **SHORT}
    run = train(
        tiny_model(),
        tiny_data,
        output_dir=tmp_path,
        class_weight="balanced",
        **options,
    )
    again = train(
        tiny_model(), tiny_data, output_dir=tmp_path, resume=True, **options
    )
    assert again.config["class_weight"] == run.config["class_weight"]
    message = refusal(
        lambda: train(
            tiny_model(),
            tiny_data,
            output_dir=tmp_path,
            resume=True,
            class_weight={0: 5.0},
            **options,
        )
    )
    assert "class_weight" in message


def bad_data(data):
    images, labels = data.train.images, data.train.labels
    return [
        ((images, labels[:5]), "one label for each"),
        ((images, labels + 10), "0 to 9"),
        ((images / 255.0, labels), "multiply them by 255"),
        ((images, [[1], [1, 2]]), "as arrays"),
        (Batches(images, labels[:63]), "data has no batches"),
        (Batches(images, labels + 10), "the first batch of data: labels are"),
        (3, "data is int"),
    ]


@pytest.mark.parametrize("case", range(7))
def test_data_that_do_not_fit(case, tiny_model, tiny_data):
    data, word = bad_data(tiny_data)[case]
    assert word in refusal(as_dataset, tiny_model(), data)


def test_a_stream_with_other_validation_data(tiny_model, tiny_data):
    stream = Batches(tiny_data.train.images, tiny_data.train.labels)
    for wrong in (0.1, stream):
        line = refusal(as_dataset, tiny_model(), stream, wrong)
        assert line.startswith("validation_data: give (images, labels)")


def test_a_stream_brings_its_own_weights(tiny_data):
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    trained = TrainingModel(net, net, 1, class_weight=[1.0, 2.0, 4.0])
    images, labels = np.zeros((2, 2)), np.array([2, 1])
    batch = tuple(map(keras.ops.convert_to_tensor, (images, labels, [0.5, 3])))
    *_, weights = trained._augmented(batch)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(weights), [2, 6])


def test_options_that_do_not_go_together(tiny_model, tiny_data):
    model, held_out = tiny_model(), tiny_data.validation
    images, labels = tiny_data.train.images, tiny_data.train.labels
    stream = as_dataset(model, Batches(images, labels))
    pair = (held_out.images, held_out.labels)
    assert "validation_data=" in refusal(as_dataset, model, tiny_data, pair)
    assert "in memory" in refusal(class_weights, "balanced", stream)
    for weights in ("balance", {10: 1.0}, {0: -1.0}, {0: math.nan}, [1.0]):
        assert "class_weight=" in refusal(class_weights, weights, tiny_data)
    assert "rand_augment=2 needs images in memory" in refusal(
        lambda: train(model, Batches(images, labels), rand_augment=2)
    )


def test_a_stream_of_unknown_length(tiny_model):
    tf = pytest.importorskip("tensorflow")
    stream = tf.data.Dataset.from_generator(
        lambda: iter(()), output_signature=tf.TensorSpec(())
    )
    message = refusal(as_dataset, tiny_model(), stream)
    assert "assert_cardinality" in message
