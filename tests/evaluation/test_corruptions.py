"""The corruptions of CIFAR-10-C: what is published of them, and files."""

import json

import numpy as np
import pytest
from helpers import refusal

from keras_resnet_cifar.data import shapes
from keras_resnet_cifar.evaluation import evaluate
from keras_resnet_cifar.evaluation.corruptions import (
    CORRUPTIONS,
    STANDARD,
    corrupt,
    read_corrupted,
)

GREY = np.full((20, 32, 32, 3), 128, "uint8")


@pytest.fixture(scope="module")
def images():
    return shapes.draw(6, seed=3)[0]


def test_the_names_are_those_of_the_paper():
    assert len(CORRUPTIONS) == 19
    assert [n for n in CORRUPTIONS if n not in STANDARD] == [
        "speckle_noise",
        "gaussian_blur",
        "spatter",
        "saturate",
    ]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_changes_images_the_same_way_each_time(name, images):
    before = images.copy()
    for severity in (1, 3, 5):
        changed = corrupt(images, name, severity)
        assert (changed.shape, changed.dtype) == (images.shape, np.uint8)
        assert np.abs(changed.astype(int) - images).mean() > 0.2
        again = corrupt(images, name, severity)
        np.testing.assert_array_equal(changed, again)
    np.testing.assert_array_equal(images, before)
    other = corrupt(images, name, 5, seed=1)
    by_chance = name not in (
        *("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate"),
        *("jpeg_compression", "gaussian_blur", "saturate"),
    )
    assert (other != changed).any() == by_chance


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("side", [48, 33])
def test_images_of_another_size(name, side):
    """And uniform ones, in which edges and colours are undefined."""
    large = np.full((2, side, side, 3), 255, "uint8")
    large[1] = 0
    for severity in (1, 5):
        assert corrupt(large, name, severity).shape == large.shape


def test_noise_has_the_published_strength():
    """By its standard deviation on grey, as a share of white."""
    x = 128 / 255
    for name, severity, expected in (
        ("gaussian_noise", 1, 0.04),
        ("gaussian_noise", 5, 0.10),
        ("shot_noise", 1, np.sqrt(x / 500)),
        ("shot_noise", 5, np.sqrt(x / 50)),
        ("speckle_noise", 2, 0.1 * x),
        ("speckle_noise", 4, 0.16 * x),
    ):
        deviation = corrupt(GREY, name, severity).std() / 255
        assert deviation == pytest.approx(expected, rel=0.03), name
    impulses = corrupt(GREY, "impulse_noise", 5) != 128
    assert impulses.mean() == pytest.approx(0.07, rel=0.05)


def test_a_severity_is_a_whole_number():
    assert "severity=2.0: give 1 to 5" in refusal(corrupt, GREY, "fog", 2.0)


def test_brightness_contrast_and_saturation_are_the_published_maps():
    image = np.zeros((1, 4, 4, 3), "uint8")
    image[:, :2] = 100, 50, 50
    image[:, 2:] = 20, 40, 20
    red = corrupt(image, "brightness", 5)[0, 0, 0]
    assert red.tolist() == pytest.approx([176.5, 88.25, 88.25], abs=1)
    low = corrupt(image, "contrast", 5)[0, 0, 0]
    assert low.tolist() == pytest.approx([66, 45.75, 36.5], abs=1)
    grey = corrupt(image, "saturate", 2)[0, 0, 0]
    assert grey.tolist() == pytest.approx([100, 95, 95], abs=1)


def test_blurs_are_the_published_kernels():
    dot = np.zeros((1, 33, 33, 3), "uint8")
    dot[:, 16, 16] = 255
    gaussian = corrupt(dot, "gaussian_blur", 5)[0, ..., 0] / 255
    assert gaussian[16, 16] == pytest.approx(1 / (2 * np.pi), abs=0.01)
    assert gaussian[16, 17] / gaussian[16, 16] == pytest.approx(
        np.exp(-0.5), abs=0.05
    )
    defocus = corrupt(dot, "defocus_blur", 5)[0, ..., 0]
    np.testing.assert_array_equal(defocus[15:18, 15:18], 255 // 9)
    assert np.count_nonzero(defocus) == 9
    motion = corrupt(dot, "motion_blur", 1)[0, ..., 0]
    weights = np.exp(-(np.arange(13) ** 2) / 2)
    expected = np.floor(255 * weights / weights.sum())
    found = np.sort(motion[motion > 0])[::-1]
    np.testing.assert_allclose(found, expected[expected > 0], atol=1)


def test_many_images_are_corrupted_part_by_part(images):
    many = np.concatenate([images] * 90)  # more than are made at once
    for name in ("gaussian_noise", "contrast", "jpeg_compression"):
        one, all_of_them = corrupt(many[:500], name, 3), corrupt(many, name, 3)
        np.testing.assert_array_equal(all_of_them[:500], one)


def test_what_cannot_be_corrupted(images):
    assert "did you mean fog" in refusal(corrupt, images, "fogg", 1)
    assert "severity=6" in refusal(corrupt, images, "fog", 6)
    assert "uint8" in refusal(corrupt, images / 255, "fog", 1)


def write_files(folder, images, labels, names=STANDARD):
    """Files as those of CIFAR-10-C; all severities are the images."""
    for name in names:
        np.save(folder / f"{name}.npy", np.concatenate([images] * 5))
    np.save(folder / "labels.npy", np.concatenate([labels] * 5))


def test_made_and_published_images(
    tiny_model, tiny_data, tmp_path, monkeypatch
):
    test, names = tiny_data.test, tiny_data.class_names

    def by_brightness(model, split, *options, **more):
        return (split.images.mean(axis=(1, 2, 3)) - 90)[:, None] * np.arange(10)

    monkeypatch.setattr(evaluate, "split_logits", by_brightness)
    write_files(tmp_path, test.images, test.labels)
    seen = []
    for files, source in (
        (None, "made"),
        (read_corrupted(tmp_path), "files"),
    ):
        values = evaluate.evaluate_corruptions(
            *(tiny_model(), test, names, tmp_path, files, 50),
            each=lambda name, accuracies: seen.append(name),
        )
        read = json.loads((tmp_path / "corruptions.json").read_text())
        assert read == values
        assert read["tta"] == "none"
        assert (values["source"], values["images"]) == (source, 50)
        standard = [values["accuracy"][name] for name in STANDARD]
        error = 1 - np.mean(standard)
        assert values["mean_corruption_error"] == pytest.approx(error)
    assert seen == ["none", *CORRUPTIONS, "none", *STANDARD]
    # These files hold the images themselves.
    assert np.ptp([*standard, [values["clean"]] * 5]) == 0
    picture = (tmp_path / "corruptions.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_files_that_are_not_cifar10c(images, tmp_path):
    assert "labels.npy" in refusal(read_corrupted, tmp_path)
    labels = np.zeros(len(images), "uint8")
    write_files(tmp_path, images, labels, STANDARD[1:])
    assert "gaussian_noise.npy" in refusal(read_corrupted, tmp_path)
    write_files(tmp_path, images, labels)
    assert list(read_corrupted(tmp_path)) == list(STANDARD)
    np.save(tmp_path / "fog.npy", images)
    assert "fog.npy is uint8" in refusal(read_corrupted, tmp_path)
    np.save(tmp_path / "fog.npy", np.array([object()]))
    assert "Python objects" in refusal(read_corrupted, tmp_path)
