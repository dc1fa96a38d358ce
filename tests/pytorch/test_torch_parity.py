"""The same numbers as PyTorch: real checkpoints to the image, and training."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_resnet_cifar.data.batches import ShuffledBatches
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.data.load import Dataset, Split, load_dataset
from keras_resnet_cifar.evaluation.evaluate import logits_of
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.models.torch_checkpoints import (
    load_torch_checkpoint,
    save_torch_checkpoint,
)
from keras_resnet_cifar.training.train import train

torch = pytest.importorskip("torch", reason="PyTorch's numbers are compared")
references = pytest.importorskip("torch_references")

PEERS = "KERAS_RESNET_CIFAR_PEERS"
# Of the 10,000 test images, as the checkpoints score in PyTorch; a sum in
# another order may turn one image.
CORRECT = {"resnet20": 9173, "resnet56": 9339}
TOLERANCE = 1


@pytest.fixture
def peers():
    """The folder of published checkpoints, or a skip that says how."""
    folder = os.environ.get(PEERS)
    if not folder:
        pytest.skip(f"{PEERS} names no folder with akamaster's checkpoints")
    return Path(folder)


@pytest.fixture
def test_split(real_data):
    return load_dataset("cifar10", data_dir=real_data).test


ARCHS = ["resnet20", pytest.param("resnet56", marks=pytest.mark.slow)]


@pytest.mark.parametrize("arch", ARCHS)
def test_published_checkpoints_score_the_same(arch, peers, test_split):
    model = load_torch_checkpoint(peers / f"akamaster-{arch}.th", arch=arch)
    predicted = logits_of(model, test_split.images).argmax(axis=-1)
    correct = int((predicted == test_split.labels).sum())
    assert abs(correct - CORRECT[arch]) <= TOLERANCE


SERVE = """
import sys
sys.modules["keras"] = sys.modules["keras_resnet_cifar"] = None
import numpy as np
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
images, labels = (np.load(sys.argv[2])[key] for key in ("images", "labels"))
predicted = [
    loaded.serve(tf.cast(images[i : i + 500], tf.float32)).numpy().argmax(-1)
    for i in range(0, len(images), 500)
]
print((np.concatenate(predicted) == labels).sum())
"""


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow exports it"
)
def test_an_exported_checkpoint_scores_the_same(peers, test_split, tmp_path):
    """In a process that has TensorFlow and neither Keras nor this package."""
    model = load_torch_checkpoint(peers / "akamaster-resnet20.th")
    model.export(tmp_path / "model", verbose=False)
    np.savez(
        tmp_path / "test.npz",
        images=test_split.images,
        labels=test_split.labels,
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SERVE,
            tmp_path / "model",
            tmp_path / "test.npz",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    assert abs(int(done.stdout) - CORRECT["resnet20"]) <= TOLERANCE


# Few activations, of noise, and a seed with which no input of a ReLU comes
# nearer to zero than 5e-6: where one does, float32 and float64 part in PyTorch
# itself (by 10 % in 20 steps on 32x32 images), and nothing could be compared.
BATCH, STEPS, SIDE = 16, 20, 8
SHAPE = {"widths": (4, 8, 16), "blocks": (1, 1, 1)}


@pytest.fixture
def noise():
    """A dataset of ten steps an epoch."""
    generator = np.random.default_rng(1)
    count = BATCH * STEPS // 2
    split = Split(
        generator.integers(0, 256, (count, SIDE, SIDE, 3), "uint8"),
        generator.integers(0, 10, count, "uint8"),
    )
    return Dataset(
        name="shapes",
        train=split,
        validation=None,
        test=split,
        class_names=DATASETS["shapes"].class_names,
        source="random numbers",
        fingerprints={},
        verified=False,
        request={},
    )


def trained_by_pytorch(net, data, nesterov):
    """20 steps of `torch.optim.SGD` on the batches of seed 0."""
    info = DATASETS["shapes"]
    feed = ShuffledBatches(data.train, data.num_classes, BATCH, seed=0)
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=0.1,
        momentum=0.9,
        nesterov=nesterov,
        weight_decay=5e-4,
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    net.train()
    for step in range(STEPS):
        epoch, index = divmod(step, len(feed))
        feed.begin(epoch)
        picked = feed.order[index]
        images = references.normalized(
            data.train.images[picked], info.mean, info.std
        )
        labels = torch.from_numpy(data.train.labels[picked]).long()
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return net.state_dict()


@pytest.mark.parametrize(
    "nesterov", [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_twenty_steps_of_training(nesterov, noise, tmp_path):
    """The package's own `train` against PyTorch, from the same weights."""
    net = references.randomized(references.Net("chenyaofo", **SHAPE))
    start, end = tmp_path / "start.pth", tmp_path / "end.pth"
    torch.save(net.state_dict(), start)
    model = build_resnet(
        stage_blocks=SHAPE["blocks"],
        widths=SHAPE["widths"],
        shortcut="projection",
        input_shape=(SIDE, SIDE, 3),
        normalization="shapes",
    )
    model.set_weights(load_torch_checkpoint(start).get_weights())
    train(
        model,
        noise,
        "cosine",
        epochs=2,
        batch_size=BATCH,
        nesterov=nesterov,
        padding=0,
        flip=False,
        verbose=False,
    )
    save_torch_checkpoint(model, end, "chenyaofo")
    ours = torch.load(end, weights_only=True)
    errors = {
        name: float((ours[name] - tensor).abs().max() / tensor.abs().max())
        for name, tensor in trained_by_pytorch(net, noise, nesterov).items()
        if not name.endswith("num_batches_tracked")
    }
    assert {name: e for name, e in errors.items() if not e < 1e-4} == {}
