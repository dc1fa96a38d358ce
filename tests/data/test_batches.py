"""Batches of a split in memory, and streams of the user's own."""

import keras
import numpy as np
import pytest

from keras_resnet_cifar.data.batches import (
    ResidentSplit,
    ShuffledBatches,
    StepNumbers,
    StreamedBatches,
    StreamedSplit,
    even_batch_size,
)
from keras_resnet_cifar.data.load import Split

IMAGES, LABELS = np.zeros((12, 8, 8, 3), "uint8"), np.zeros(12, "uint8")


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return IMAGES[:6], LABELS[:6]


def batch_size_of(stream):
    return StreamedBatches(StreamedSplit(stream), batch_size=64).batch_size


def test_the_batch_size_is_the_streams():
    assert batch_size_of(Batches()) == 6


@pytest.mark.parametrize(("even", "expected"), [(True, 4), (False, 64)])
def test_the_batch_size_of_tf_data_if_its_type_says_so(even, expected):
    tf = pytest.importorskip("tensorflow", reason="tf.data")
    stream = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))
    assert batch_size_of(stream.batch(4, drop_remainder=even)) == expected


def test_step_numbers_come_by_calls():
    numbers = StepNumbers(1, 8, 3)
    assert len(numbers) == 7
    calls = [numbers[call][0].tolist() for call in range(4)]
    assert calls == [[1, 2, 3], [4, 5, 6], [7], []]
    rows = StepNumbers(1, 8, 3, devices=2)
    assert rows[1][0].tolist() == [[4, 5, 6]] * 2


def test_even_batches_divide_among_devices_if_they_can():
    assert even_batch_size(5000) == 500
    assert even_batch_size(5000, devices=8) == 200
    assert even_batch_size(5000, devices=64) == 500


def test_alternating_flip_mirrors_each_image_in_every_second_epoch():
    """By the host and on the device, the same images."""
    images = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 3), "uint8")
    split = Split(images, np.arange(24).astype("uint8"))

    def batches(resident_bytes):
        return ShuffledBatches(
            split, 24, 8, 0, None, True, resident_bytes=resident_bytes
        )

    on_host, on_device = batches(0), batches(2**20)
    resident = ResidentSplit(split, 24, on_device.order, alternating_flip=True)
    mirrored = []
    for epoch in range(3):
        on_host.begin(epoch)
        on_device.begin(epoch)
        resident.order.assign(on_device.order)
        epoch_mirrored = np.zeros(24, bool)
        for step in range(3):
            batch, targets = on_host[step]
            same = resident(keras.ops.convert_to_tensor([step], "int32"))
            for ours, theirs in zip((batch, targets), same, strict=True):
                np.testing.assert_array_equal(
                    ours, keras.ops.convert_to_numpy(theirs)
                )
            for image, label in zip(batch, targets.argmax(1), strict=True):
                original = np.array_equal(image, images[label])
                if not original:
                    np.testing.assert_array_equal(image, images[label, :, ::-1])
                epoch_mirrored[label] = not original
        mirrored.append(epoch_mirrored)
    assert 4 < mirrored[0].sum() < 20
    np.testing.assert_array_equal(mirrored[1], ~mirrored[0])
    np.testing.assert_array_equal(mirrored[2], mirrored[0])
