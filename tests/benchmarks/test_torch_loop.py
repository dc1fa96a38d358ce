"""The PyTorch loop that the benchmark times does what `fit` does."""

# ruff: noqa: E402

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="it is PyTorch's loop")

from benchmarks import torch_loop
from benchmarks.torch_nets import net_like
from keras_resnet_cifar.data import shapes
from keras_resnet_cifar.models.architectures import ARCHITECTURES, resolve
from keras_resnet_cifar.training.recipes import get_recipe


@pytest.mark.parametrize(
    "name",
    [
        "resnet20",
        "resnet20-projection",
        "resnet164-bottleneck",
        "resnet26-ie534",
        "resnet18",
        "resnet18-preact-kuangliu",
        "resnet50-imagenet",
    ],
)
def test_its_nets_have_the_parameters_of_the_table(name):
    net = net_like(resolve(name))
    count = sum(p.numel() for p in net.parameters())
    assert count == ARCHITECTURES[name].parameters


def test_its_rates_are_those_of_the_schedule():
    recipe = get_recipe("onecycle", epochs=7)
    rates = torch_loop.one_cycle(recipe, 13)
    expected = recipe.schedule_for(13)(np.arange(7 * 13))
    np.testing.assert_allclose(rates, np.asarray(expected), atol=1e-6)


def test_each_image_is_cropped_and_flipped_in_its_own_way():
    generator = np.random.default_rng(0)
    padded = generator.random((50, 12, 12, 3), "float32")
    picked = torch.tensor([*range(50)] * 20)
    batch = torch_loop.augmented(torch.from_numpy(padded), picked, 2, True)
    assert batch.shape == (1000, 3, 8, 8)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    images = batch.permute(0, 2, 3, 1).numpy()
    crops = {
        crop_of(image, padded[index])
        for index, image in zip(picked, images, strict=True)
    }
    assert crops == {
        (y, x, m) for y in range(5) for x in range(5) for m in (1, -1)
    }


def crop_of(image, padded):
    """The (row, column, direction) of a crop; it fails if it is none."""
    (crop,) = (
        (y, x, m)
        for y in range(5)
        for x in range(5)
        for m in (1, -1)
        if np.array_equal(image, padded[y : y + 8, x : x + 8][:, ::m])
    )
    return crop


@pytest.fixture
def one_thread():
    """Threads that wait for each other are slow where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_loop(precision):
    torch.manual_seed(0)
    recipe = get_recipe("onecycle", epochs=6, batch_size=32, learning_rate=0.2)
    images, labels = shapes.draw(128, seed=0)
    images = images[:, 8:24, 8:24]
    statistics = (0.5,) * 3, (0.27,) * 3
    return torch_loop.TorchLoop(
        resolve("resnet8"), recipe, images, labels, *statistics, precision
    )


def test_a_data_loader_makes_the_same_batches():
    loop = small_loop("float32")
    (images, labels), (other, _) = (
        next(batches) for batches in (loop.loaded(workers=0), loop.batches())
    )
    assert images.shape == other.shape == (32, 3, 16, 16)
    assert images.dtype == other.dtype
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.shape == (32,)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_it_learns(precision, one_thread):
    loop = small_loop(precision)
    loop.train(loop.batches(), 2)
    first = loop.total[0].item() / 2
    loop.train(loop.batches(), 20)
    last = (loop.total[0].item() - 2 * first) / 20
    assert last < first
    assert 0 <= loop.evaluate() <= 1
