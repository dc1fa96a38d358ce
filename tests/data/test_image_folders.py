"""One's own images: classes, sizes, splits, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from keras_resnet_cifar.cli import main as cli
from keras_resnet_cifar.data import folders, shapes
from keras_resnet_cifar.data.folders import class_names, load_folders
from keras_resnet_cifar.data.load import load_dataset
from keras_resnet_cifar.errors import InputError

CLASSES = ("ant", "bee", "cow")


def write(path, size=(40, 32), shade=100, **options):
    """An image file; `size` is (width, height), its left third is black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size[::-1], 3), shade, "uint8")
    pixels[:, : size[0] // 3] = 0
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Three classes of 10 training, 2 validation and 4 test images."""
    root = tmp_path / "photos"
    for split, count in (("train", 10), ("val", 2), ("test", 4)):
        for label, name in enumerate(CLASSES):
            for index in range(count):
                path = root / split / name / f"{index}.png"
                write(path, shade=60 * label + index + 60)
    return root


def test_classes_are_the_sorted_folder_names(folder):
    (folder / "train" / ".hidden").mkdir()
    (folder / "train" / "notes.txt").write_text("no class")
    (folder / "train" / "ant" / "notes.txt").write_text("no image")
    data = load_dataset(str(folder))
    assert data.class_names == class_names(folder) == CLASSES
    assert [len(s) for s in (data.train, data.validation, data.test)] == [
        30,
        6,
        12,
    ]
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert data.verified
    again = load_dataset(**data.request)
    assert again.fingerprints == data.fingerprints


def test_images_become_squares_of_the_median_side(folder):
    write(folder / "train" / "ant" / "large.jpg", (640, 480))
    write(folder / "test" / "ant" / "tall.png", (16, 64))
    splits = load_folders(folder)
    images, _ = splits["train"]
    assert images.shape == (31, 32, 32, 3)
    # 40 x 32, already 32 high: its middle as it is, 9 of 13 black columns.
    assert (images[0, :, :9] == 0).all()
    assert (images[0, :, 9:] == 60).all()
    assert splits["test"][0].shape == (13, 32, 32, 3)


def test_each_image_is_decoded_once(folder, monkeypatch):
    write(folder / "train" / "ant" / "wide.jpg", (480, 20))
    decoded = []
    decode = folders.open_image
    monkeypatch.setattr(
        folders, "open_image", lambda path: decoded.append(path) or decode(path)
    )
    splits = load_folders(folder)
    assert len(decoded) == len(set(decoded)) == 31 + 6 + 12
    assert splits["train"][0].shape == (31, 32, 32, 3)


def test_large_images_become_256(tmp_path):
    for name in CLASSES:
        write(tmp_path / "train" / name / "a.png", (400, 300))
    assert load_folders(tmp_path)["train"][0].shape == (3, 256, 256, 3)


def test_palettes_grey_and_rotated_photos_are_rgb(tmp_path):
    for name in CLASSES:
        write(tmp_path / name / "a.png", (32, 32))
    Image.new("L", (32, 32), 7).save(tmp_path / "ant" / "grey.png")
    Image.new("P", (32, 32), 1).save(tmp_path / "ant" / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    write(tmp_path / "ant" / "upside-down.png", (32, 32), exif=exif)
    images, labels = load_folders(tmp_path)["train"]
    assert labels.tolist() == [0, 0, 0, 0, 1, 2]
    assert (images[1] == 7).all()
    assert (images[3, :, -10:] == 0).all()


def test_without_test_and_val_they_are_taken_off(folder, tmp_path):
    data = load_dataset(str(folder / "train"), validation=6, seed=1)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [
        18,
        6,
        6,
    ]
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]
    other = load_dataset(str(folder / "train"), validation=6, seed=2)
    np.testing.assert_array_equal(other.test.images, data.test.images)
    assert other.train.images.tolist() != data.train.images.tolist()


def test_more_than_256_classes(tmp_path):
    for index in range(300):
        write(tmp_path / f"class{index:03}" / "a.png", (4, 4), index % 256)
    _, labels = load_folders(tmp_path)["train"]
    assert labels.dtype == np.uint16
    assert labels.tolist() == list(range(300))


def damaged(folder):
    (folder / "train" / "bee" / "3.png").write_bytes(b"no image")


def empty(folder):
    for path in (folder / "test" / "cow").iterdir():
        path.unlink()


def foreign(folder):
    write(folder / "test" / "dog" / "1.png")


def lone(folder):
    for name in ("bee", "cow"):
        (folder / "train" / name).rename(folder / name)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (damaged, "3.png as an image"),
        (empty, "cow holds no images"),
        (foreign, "class dog"),
        (lone, "one folder per class"),
    ],
)
def test_what_is_refused(folder, spoil, word):
    spoil(folder)
    with pytest.raises(InputError, match=word) as error:
        load_dataset(str(folder))
    assert "\n" not in str(error.value)


def test_the_name_of_no_folder(tmp_path):
    with pytest.raises(InputError, match="folder of images"):
        load_dataset(str(tmp_path / "nowhere"))


def test_train_and_predict_by_the_command(tmp_path, capsys):
    images, labels = shapes.draw(96, seed=0)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / "photos" / f"class{label}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    run = str(tmp_path / "run")
    command = ["train", "--arch", "resnet8", "--epochs", "1", "--quiet"]
    command += ["--batch-size", "32", "--dataset", str(tmp_path / "photos")]
    assert cli.main([*command, "--output-dir", run]) == 0
    capsys.readouterr()
    # Elsewhere, without the images, the run still knows its classes.
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert cli.main(["predict", run, str(path).replace("photos", "moved")]) == 0
    assert "class" in capsys.readouterr().out.split(":")[1]
