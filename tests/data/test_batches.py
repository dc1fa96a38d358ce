"""Streams of the user's own batches."""

import keras
import numpy as np
import pytest

from keras_resnet_cifar.data.batches import StreamedBatches, StreamedSplit

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
