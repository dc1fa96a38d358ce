"""Augmentation: what is drawn, how often, and that each image has its own."""

import sys

import keras
import numpy as np
import pytest
from helpers import refusal
from keras import ops
from PIL import Image

from keras_resnet_cifar.data.augmentation import (
    QuantileMixUp,
    RandomCutout,
    RandomPadCrop,
    RandomResizedCrop,
    check_sizes,
    host_transform,
    image_layers,
    mixing_layers,
    rand_augment,
)
from keras_resnet_cifar.data.batches import ShuffledBatches
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.training.compilation import compile_for_training
from keras_resnet_cifar.training.recipes import get_recipe

MEAN = (0.5, 0.5, 0.5)


def images(count, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(1, 256, (count, 32, 32, 3), "uint8")


def run(layer, x):
    return ops.convert_to_numpy(layer(x, training=True))


def offset_of(crop, padded):
    """All offsets (row, column) at which `crop` lies in `padded`."""
    side = crop.shape[0]
    return [
        (row, column)
        for row in range(padded.shape[0] - side + 1)
        for column in range(padded.shape[1] - side + 1)
        if (padded[row : row + side, column : column + side] == crop).all()
    ]


@pytest.mark.parametrize(
    ("mode", "pad"), [("zero", "constant"), ("reflect", "reflect")]
)
def test_every_crop_is_a_window_of_the_padded_image(mode, pad):
    x = images(20)
    for image, crop in zip(
        x, run(RandomPadCrop(4, mode, seed=0), x), strict=True
    ):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode=pad)
        assert len(offset_of(crop, padded)) == 1


@pytest.mark.parametrize("padding", [2, 3, 7])
def test_a_wide_border_is_reflected_more_than_once(padding):
    x = images(20)[:, :3, :3]
    around = ((padding, padding), (padding, padding), (0, 0))
    crops = run(RandomPadCrop(padding, "reflect", seed=0), x)
    for image, crop in zip(x, crops, strict=True):
        assert offset_of(crop, np.pad(image, around, mode="reflect"))


def test_crops_are_uniform_over_81_positions_one_an_image():
    # Each pixel holds its place, so that a crop shows its offset.
    rows, columns = np.mgrid[0:32, 0:32]
    image = np.stack([rows, columns, np.ones_like(rows)], -1) + 10
    x = np.tile(image[None], (1000, 1, 1, 1)).astype("float32")
    layer = RandomPadCrop(4, seed=0)
    counts = np.zeros((9, 9))
    for _ in range(20):
        crops = run(layer, x)
        middle = crops[:, 16, 16, :2] - 10 - 16  # inside at every offset
        offsets = middle.astype(int) + 4
        np.add.at(counts, (offsets[:, 0], offsets[:, 1]), 1)
    assert counts.sum() == 20_000
    expected = 20_000 / 81
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 124.8  # the 99.9 % quantile at 80 degrees of freedom


def test_flip_is_horizontal_for_half_of_the_images():
    recipe = get_recipe("paper", padding=0)
    (flip,) = image_layers(recipe, MEAN, seed=0)
    x = images(2000)
    out = run(flip, x)
    kept = (out == x).all(axis=(1, 2, 3))
    flipped = (out == x[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (kept ^ flipped).all()
    assert 900 < flipped.sum() < 1100  # 4.5 standard deviations


def test_cutout_blanks_one_square_an_image_centred_anywhere():
    x = images(3000)
    out = run(RandomCutout(16, (1, 2, 3), seed=0), x)
    blank = (out != x).any(axis=-1)
    assert (out[blank] == (1, 2, 3)).all()
    rows, columns = blank.any(axis=2), blank.any(axis=1)
    np.testing.assert_array_equal(
        blank, rows[:, :, None] & columns[:, None, :]
    )  # a rectangle
    heights = rows.sum(axis=1)
    assert heights.max() == 16
    assert heights.min() == 8  # half of it outside
    # A centre 8 to 24 of 0 to 31 shows the whole side: 17 of 32.
    assert np.isclose((heights == 16).mean(), 17 / 32, atol=0.04)
    assert len(np.unique(rows.argmax(axis=1))) == 24  # tops 0 to 23


def test_without_training_images_pass():
    x = images(4)
    for layer in (RandomPadCrop(), RandomResizedCrop(32), RandomCutout()):
        np.testing.assert_array_equal(ops.convert_to_numpy(layer(x)), x)


def test_without_training_a_resized_crop_is_the_whole_image():
    x = images(1)
    (out,) = ops.convert_to_numpy(RandomResizedCrop(16)(x))
    expected = Image.fromarray(x[0]).resize((16, 16), Image.BILINEAR)
    np.testing.assert_allclose(out, expected, atol=1)  # of 255, by rounding


def test_crop_and_flip_together():
    x = images(200)
    out = run(RandomPadCrop(4, flip=True, seed=0), x)
    for image, crop in zip(x, out, strict=True):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
        found = [len(offset_of(c, padded)) for c in (crop, crop[:, ::-1])]
        assert sorted(found) == [0, 1]


def test_a_seed_gives_the_same_draws_and_the_next_call_others():
    x = images(8)
    for make in (RandomPadCrop, RandomResizedCrop, RandomCutout):
        first, second = make(seed=3), make(seed=3)
        drawn = run(first, x)
        np.testing.assert_array_equal(drawn, run(second, x))
        assert (drawn != run(first, x)).any()


@pytest.mark.parametrize(
    "layer",
    [
        RandomPadCrop(3, "reflect", True, seed=1),
        RandomResizedCrop(48, (0.2, 0.9), (0.5, 2.0), True, seed=1),
        RandomCutout(7, 9.0, seed=1),
    ],
)
def test_layers_survive_their_config(layer):
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()


def test_bfloat16_keeps_pixels_exact():
    x = images(8)
    exact = run(RandomPadCrop(seed=0), x)
    rounded = RandomPadCrop(seed=0, dtype="bfloat16")(x, training=True)
    rounded = ops.convert_to_numpy(ops.cast(rounded, "float32"))
    np.testing.assert_array_equal(exact, rounded)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: RandomPadCrop(mode="mirror"), "unknown mode .*reflect"),
        (lambda: RandomPadCrop(-1), "padding=-1: must be at least 0"),
        (lambda: RandomPadCrop(2.7), "padding=2.7: give a whole number"),
        (lambda: RandomPadCrop(seed=0.5), "seed=0.5: give a whole number"),
        (lambda: RandomCutout("8"), "size='8': give a whole number"),
        (lambda: RandomResizedCrop(0), "size=0: must be at least 1"),
        (lambda: RandomResizedCrop(8, 0.5), "scale=.*the least and the most"),
        (lambda: RandomResizedCrop(8, (1, 0.1)), "scale=.*the least and the"),
        (lambda: RandomResizedCrop(8, ratio=(0, 1)), "ratio=.*above 0"),
    ],
)
def test_values_that_cannot_be(make, text):
    with pytest.raises(InputError, match=text):
        make()


def test_numbers_of_numpy():
    layer = RandomPadCrop(np.int64(2), seed=np.int64(3))
    assert layer.get_config()["padding"] == 2
    assert run(layer, images(4)).shape == (4, 32, 32, 3)


@pytest.mark.parametrize(
    "changes", [{"mixup": 0.4, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}]
)
def test_mixing_mixes_labels_in_the_proportion_of_the_pixels(changes):
    (layer,) = mixing_layers(get_recipe("paper", **changes), seed=0)
    n = 64
    # Image i is all i: each output pixel shows which images it is mixed of.
    x = np.ones((n, 32, 32, 3), "float32") * np.arange(n)[:, None, None, None]
    y = np.eye(n, dtype="float32")
    out = layer({"images": x, "labels": y}, training=True)
    labels = ops.convert_to_numpy(out["labels"])
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-5)
    mean = ops.convert_to_numpy(out["images"]).mean(axis=(1, 2, 3))
    # Pixels of a cut box are whole: up to 2 * 32 of 1024 by rounding, times
    # the difference of the two images.
    share = 0.07 if changes["cutmix"] else 1e-3
    np.testing.assert_allclose(mean, labels @ np.arange(n), atol=n * share)
    mixed = (labels.max(axis=1) < 0.999).mean()
    assert mixed > 0.3
    assert len(np.unique(labels.max(axis=1).round(4))) > 8  # each its own


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 3.0])
def test_beta_by_its_quantiles(alpha):
    """As NumPy draws it, up to the spread of 400,000 draws."""
    draws = np.random.default_rng(0).beta(alpha, alpha, 400_000)
    drawn = QuantileMixUp(alpha, seed=0).get_random_transformation(
        {"images": np.zeros((400_000, 1, 1, 3), "float32")}
    )
    weights = ops.convert_to_numpy(drawn["mix_weight"])
    draws = draws.astype("float32")  # in which many are equal near 1
    for level in (0.01, 0.1, 0.3, 0.7, 0.95):
        quantile = np.quantile(weights, level)
        assert (draws < quantile).mean() <= level + 0.005
        assert (draws <= quantile).mean() >= level - 0.005


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64")
def test_mixup_draws_without_rejection():
    """Whose loops of unknown length a GPU would ask its host about."""
    if keras.backend.backend() != "jax":
        pytest.skip("JAX alone: KERAS_BACKEND=jax")
    import jax

    x = np.zeros((8, 4, 4, 3), "float32")

    def program(layer):
        def mix(x):
            return layer({"images": x, "labels": x[:, 0, 0]}, training=True)

        with keras.StatelessScope():
            return str(jax.make_jaxpr(mix)(x))

    (ours,) = mixing_layers(get_recipe("paper", mixup=0.2), seed=0)
    assert "random_gamma" in program(keras.layers.MixUp(0.2))
    assert "random_gamma" not in program(ours)


def test_rand_augment_runs_on_the_host_and_keeps_the_range():
    transform = host_transform(get_recipe("randaugment"), seed=0)
    x = images(16)
    out = transform(x, 0, 0)
    assert out.shape == x.shape
    assert out.dtype == np.uint8
    assert (out != x).any(axis=(1, 2, 3)).mean() > 0.5
    assert host_transform(get_recipe("paper"), seed=0) is None


def test_rand_augment_is_a_function_of_seed_epoch_and_step():
    recipe, x = get_recipe("randaugment"), images(8)
    drawn = [
        host_transform(recipe, seed)(x, epoch, step)
        for seed, epoch, step in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    transform = host_transform(recipe, 0)
    transform(x, 5, 5)
    np.testing.assert_array_equal(transform(x, 0, 0), drawn[0])
    assert all((other != drawn[0]).any() for other in drawn[1:])


# Keras's own layer transposes scalars on the backend torch.
@pytest.mark.filterwarnings("ignore:Tensor.T is deprecated on 0-D")
def test_rand_augment_without_keras_cv(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_cv", None)
    monkeypatch.setitem(sys.modules, "keras_cv.layers", None)
    assert isinstance(rand_augment(2, seed=0), keras.layers.RandAugment)
    x = images(4)
    out = host_transform(get_recipe("randaugment"), seed=0)(x, 0, 0)
    assert out.shape == x.shape
    assert out.dtype == np.uint8
    assert (out != x).any()


SIDES = (40, 56)  # height and width


def test_resized_crop_is_pillows():
    # Boxes that grow and that shrink, at the border and inside.
    boxes = [(0, 0, 40, 56), (3, 7, 11, 9), (20, 41, 20, 15), (0, 5, 40, 4)]
    x = np.random.default_rng(0).uniform(0, 255, (4, *SIDES, 1))
    layer = RandomResizedCrop(24)
    top, left, tall, wide = ops.cast(np.transpose(boxes), "float32")
    rows = layer.interpolation(top, tall, SIDES[0])
    columns = layer.interpolation(left, wide, SIDES[1])
    out = ops.convert_to_numpy(
        ops.einsum("nij,njwc,nkw->nikc", rows, x.astype("float32"), columns)
    )
    for image, crop, (top, left, tall, wide) in zip(x, out, boxes, strict=True):
        plane = image[top : top + tall, left : left + wide, 0].astype("float32")
        plane = Image.fromarray(plane).resize((24, 24), Image.BILINEAR)
        np.testing.assert_allclose(crop[..., 0], plane, atol=1e-3)


def test_resized_crops_have_the_area_and_ratio_that_are_asked():
    layer = RandomResizedCrop(24, seed=0)
    top, left, tall, wide = (
        ops.convert_to_numpy(side) for side in layer.draw(5000, 200, 200)
    )
    assert min(top.min(), left.min()) == 0
    assert (top + tall).max() == (left + wide).max() == 200
    # Whole pixels: half a pixel of the shortest side, 200 * sqrt(.08 * .75).
    area, ratio = tall * wide / 200**2, wide / tall
    assert 0.078 < area.min() < 0.1 < 0.97 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.76 < 1.32 < ratio.max() < 1.35
    assert 0.45 < area.mean() < 0.54  # large and narrow ones do not fit
    assert abs(np.log(ratio).mean()) < 0.01
    for first, side in ((top, tall), (left, wide)):
        place = first / np.maximum(200 - side, 1)
        assert abs(place[side < 150].mean() - 0.5) < 0.02  # 3.5 deviations


def test_where_no_box_fits_it_is_the_largest_central_one():
    layer = RandomResizedCrop(24, scale=(1.0, 1.0), seed=0)
    box = [int(side[0]) for side in layer.draw(3, 90, 300)]
    assert box == [0, 90, 90, 120]  # as wide as 4/3 allows


def test_resized_crops_flip_half_of_the_images():
    recipe = get_recipe("paper", random_resized_crop=16)
    (layer,) = image_layers(recipe, MEAN, seed=0)
    ramp = np.broadcast_to(np.arange(32.0)[None, :, None], (32, 32, 3))
    out = run(layer, np.stack([ramp.astype("float32")] * 1000))
    assert out.shape == (1000, 16, 16, 3)
    flipped = out[:, 0, 0, 0] > out[:, 0, -1, 0]
    assert 430 < flipped.sum() < 570  # 4.5 standard deviations
    # One draw an image: all widths and places differ.
    assert len(np.unique(out[:, 0, 0, 0])) > 300


def test_resized_crop_in_a_compiled_step_of_jax():
    if keras.backend.backend() != "jax":
        pytest.skip("jax.jit needs JAX: KERAS_BACKEND=jax")
    import jax

    layer = RandomResizedCrop(16, seed=0)
    x = images(4).astype("float32")
    layer(x, training=True)

    def step(state, x):
        out, state = layer.stateless_call([], state, x, training=True)
        return out

    state = [v.value for v in layer.non_trainable_variables]
    assert jax.jit(step)(state, x).shape == (4, 16, 16, 3)


def test_layers_in_front_of_a_net_with_plain_fit(tiny_model):
    x, y = images(16), np.arange(16) % 10
    net = tiny_model()
    model = keras.Sequential(
        [
            RandomPadCrop(4, flip=True, seed=0),
            RandomCutout(8, seed=0),
            RandomResizedCrop(32, seed=0),
            net,
        ]
    )
    np.testing.assert_allclose(
        model.predict(x, verbose=0), net.predict(x, verbose=0), atol=1e-5
    )  # without augmentation
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    before = model.get_weights()
    model.fit(x, y, batch_size=8, verbose=0)
    assert any(
        (old != new).any()
        for old, new in zip(before, model.get_weights(), strict=True)
    )


def test_layers_in_a_functional_model_that_is_saved(tmp_path):
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    cropped = RandomResizedCrop(24, seed=0)(RandomPadCrop(seed=0)(inputs))
    assert cropped.shape == (None, 24, 24, 3)
    keras.Model(inputs, cropped).save(tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras")
    assert again.output_shape == (None, 24, 24, 3)
    assert isinstance(again.layers[1], RandomPadCrop)


def test_layers_in_a_tf_data_map():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("inside of tf.data, layers need the TensorFlow backend")
    import tensorflow as tf

    x = images(8)
    layer = RandomPadCrop(4, flip=True, seed=0)
    dataset = tf.data.Dataset.from_tensor_slices(np.stack([x, x]))
    first, second = dataset.map(lambda batch: layer(batch, training=True))
    assert first.shape == x.shape
    assert (first.numpy() != x).any()
    assert (first.numpy() != second.numpy()).any()


@pytest.mark.parametrize("changes", [{}, {"cutmix": 1.0}])
def test_what_is_drawn_is_a_function_of_seed_and_step(changes, tiny_data):
    """So a backup keeps no random state."""
    recipe = get_recipe("strong", batch_size=60, **changes)
    steps = {}
    for seed in (0, 1):
        feed = ShuffledBatches(tiny_data.train, 10, 60, seed)
        model = compile_for_training(
            build_resnet("resnet8"), tiny_data, recipe, "float32", seed, feed
        )
        for step in (0, 1, 0):
            model.steps_done.assign(step)
            batch = model.augment(*model.source(np.array([0], "int32")))
            found = np.concatenate([np.ravel(part) for part in batch])
            known = steps.setdefault((seed, step), found)
            np.testing.assert_array_equal(found, known)
    assert len({values.tobytes() for values in steps.values()}) == 4


def test_cutout_must_fit_the_images(tiny_model):
    """Those of a resized crop have its size."""
    model = tiny_model()
    check_sizes(get_recipe("strong", cutout=32), model)
    recipe = get_recipe("strong", cutout=33)
    assert "cutout=33: must be at most 32" in refusal(
        check_sizes, recipe, model
    )
    inputs = keras.Input((32, 32, 3))
    large = keras.Model(inputs, keras.layers.Resizing(224, 224)(inputs))
    options = {"random_resized_crop": 224, "cutout": 64}
    check_sizes(get_recipe("strong", **options), large)
