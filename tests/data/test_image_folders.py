"""One's own images: classes, sizes, splits, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from keras_resnet_cifar.cli import main as cli
from keras_resnet_cifar.data import images
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
    splits = load_folders(folder).splits
    images, _ = splits["train"]
    assert images.shape == (31, 32, 32, 3)
    # 40 x 32, already 32 high: its middle as it is, 9 of 13 black columns.
    assert (images[0, :, :9] == 0).all()
    assert (images[0, :, 9:] == 60).all()
    assert splits["test"][0].shape == (13, 32, 32, 3)


def test_each_image_is_decoded_once(folder, monkeypatch):
    write(folder / "train" / "ant" / "wide.jpg", (480, 20))
    decoded = []
    decode = images.open_image
    monkeypatch.setattr(
        images, "open_image", lambda path: decoded.append(path) or decode(path)
    )
    splits = load_folders(folder).splits
    assert len(decoded) == len(set(decoded)) == 31 + 6 + 12
    assert splits["train"][0].shape == (31, 32, 32, 3)


def test_large_images_become_256(tmp_path):
    for name in CLASSES:
        write(tmp_path / "train" / name / "a.png", (400, 300))
        write(tmp_path / "test" / name / "a.png", (40, 30))
    assert load_folders(tmp_path).splits["train"][0].shape == (3, 256, 256, 3)


def test_palettes_grey_and_rotated_photos_are_rgb(tmp_path):
    for name in CLASSES:
        write(tmp_path / "test" / name / "a.png", (32, 32))
        write(tmp_path / "train" / name / "a.png", (32, 32))
    ants = tmp_path / "train" / "ant"
    Image.new("L", (32, 32), 7).save(ants / "grey.png")
    Image.new("P", (32, 32), 1).save(ants / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    write(ants / "upside-down.png", (32, 32), exif=exif)
    images, labels = load_folders(tmp_path).splits["train"]
    assert labels.tolist() == [0, 0, 0, 0, 1, 2]
    assert (images[1] == 7).all()
    assert (images[3, :, -10:] == 0).all()


def names_of(files):
    return {str(path) for path in files}


@pytest.fixture
def flat(tmp_path):
    """Two classes of 50 images without train/ and test/."""
    for label, name in enumerate(CLASSES[:2]):
        for index in range(50):
            path = tmp_path / "flat" / name / f"{index}.png"
            write(path, (20 + index % 3, 20), shade=label + 2 * index)
    return tmp_path / "flat"


def test_an_image_never_changes_sides(flat):
    before = load_folders(flat, 20, validation=0.2)
    assert 60 <= len(before.files["train"]) <= 75
    assert 10 <= len(before.files["test"]) <= 30
    old = {split: names_of(files) for split, files in before.files.items()}
    assert len(old["train"] | old["validation"] | old["test"]) == 100
    for index in range(100):
        write(flat / "ant" / f"0-{index}.png", (40, 44), shade=200 + index % 50)
    (flat / "bee" / "0.png").unlink()
    after = load_folders(flat, 20, validation=0.2)
    for split, names in old.items():
        others = {*old} - {split}
        new = names_of(after.files[split])
        assert names - {str(flat / "bee" / "0.png")} <= new
        assert not any(new & old[other] for other in others)
    assert old["validation"] != names_of(
        load_folders(flat, 20, validation=0.2, seed=1).files["validation"]
    )


def test_a_class_without_training_images_is_refused(tmp_path):
    for index in range(300):
        write(tmp_path / f"class{index:03}" / "a.png", (4, 4), index % 256)
    with pytest.raises(InputError, match="too few images"):
        load_dataset(str(tmp_path))


def test_images_are_read_at_the_size_asked_for(flat):
    data = load_dataset(str(flat), image_size=(24, 30))
    assert data.test.images.shape[1:] == (24, 30, 3)
    assert data.request["image_size"] == [24, 30]
    by_median = load_dataset(str(flat))
    assert by_median.request["image_size"] == [20, 20]
    with pytest.raises(InputError, match=r"image_size=\[0, 3\]"):
        load_dataset(str(flat), image_size=[0, 3])
    with pytest.raises(InputError, match="image_size='16': give"):
        load_dataset(str(flat), image_size="16")
    small = load_dataset(str(flat), image_size=np.int64(8))
    assert small.train.images.shape[1:] == (8, 8, 3)
    with pytest.raises(InputError, match="image_size=20 is for a folder"):
        load_dataset("shapes", image_size=20)


def test_more_than_256_classes(tmp_path):
    for index in range(300):
        for split in ("train", "test"):
            path = tmp_path / split / f"class{index:03}" / "a.png"
            write(path, (4, 4), index % 256)
    _, labels = load_folders(tmp_path).splits["train"]
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
        (empty, "cow has no images"),
        (foreign, "class dog"),
        (lone, "one folder per class, at least two: it has 1"),
    ],
)
def test_what_is_refused(folder, spoil, word):
    spoil(folder)
    with pytest.raises(InputError, match=word) as error:
        load_dataset(str(folder))
    assert "\n" not in str(error.value)


def test_a_folder_with_the_name_of_an_image_is_no_image(folder):
    before = load_dataset(str(folder)).fingerprints
    (folder / "train" / "bee" / "d.png").mkdir()
    assert load_dataset(str(folder)).fingerprints == before


def test_the_name_of_no_folder(tmp_path):
    with pytest.raises(
        InputError, match="nowhere is not an existing folder: check"
    ):
        load_dataset(str(tmp_path / "nowhere"))


def ellipses(folder, count, size=(64, 32)):
    """Wide and tall ellipses; squashed to a square the wide ones are tall."""
    rng = np.random.default_rng(0)
    for index in range(count):
        for name in ("tall", "wide"):
            image = Image.new("RGB", size, tuple(rng.integers(0, 90, 3)))
            long, short = rng.integers(10, 13), rng.integers(7, 9)
            x, y = (long, short) if name == "wide" else (short, long)
            column, row = size[0] // 2, size[1] // 2
            box = (column - x, row - y, column + x, row + y)
            ImageDraw.Draw(image).ellipse(box, fill=(230, 220, 200))
            path = folder / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)


@pytest.fixture(scope="module")
def ellipse_run(tmp_path_factory):
    """A run on images of 64 x 32, and its folder of images."""
    root = tmp_path_factory.mktemp("ellipses")
    ellipses(root / "images", 160)
    command = ["train", "--arch", "resnet8", "--epochs", "5", "--quiet"]
    command += ["--batch-size", "32", "--dataset", str(root / "images")]
    assert cli.main([*command, "--output-dir", str(root / "run")]) == 0
    return root / "run", root / "images"


def test_images_that_are_not_square_are_cut_alike_everywhere(
    ellipse_run, tmp_path, capsys
):
    run, images = ellipse_run
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["last"]["test"]["top1"] > 0.95
    # Elsewhere, without its images, the run still knows its classes.
    copy = shutil.copytree(run, tmp_path / "run")
    files = sorted(map(str, images.rglob("*.png")))
    assert cli.main(["predict", str(copy), *files, "--top", "1"]) == 0
    lines = [line.split(": ") for line in capsys.readouterr().out.splitlines()]
    right = [Path(file).parent.name in answer for file, answer in lines]
    assert len(right) == 320
    assert np.mean(right) > 0.95


@pytest.mark.slow
def test_the_export_is_verified_on_the_files(ellipse_run, tmp_path, capsys):
    run, _ = ellipse_run
    out = str(tmp_path / "served")
    assert cli.main(["export", str(run), "--out", out]) == 0
    assert "serving_bytes: 32 of 32 image files" in capsys.readouterr().out


def test_data_that_changed_are_noticed(ellipse_run, tmp_path, capsys):
    run, images = ellipse_run
    backup = shutil.copytree(images, tmp_path / "images")
    try:
        for index in range(30):
            name = f"wide/new{index}.png"
            Image.new("RGB", (60, 50), (index, 0, 9)).save(images / name)
        assert cli.main(["evaluate", str(run)]) == 2
        message = capsys.readouterr().err
        assert "have changed since the run was trained" in message
        assert cli.main(["evaluate", str(run), "--allow-changed-data"]) == 0
        assert "changed since the training" in capsys.readouterr().out
        # A number of validation images may now choose others.
        config = json.loads((run / "config.json").read_text())
        other = shutil.copytree(run, tmp_path / "counted")
        config["request"]["validation"] = 9
        del config["sha256"]
        (other / "config.json").write_text(json.dumps(config))
        split = ["--allow-changed-data", "--split", "validation"]
        assert cli.main(["evaluate", str(other), *split]) == 2
        assert "now chooses other images" in capsys.readouterr().err
        assert cli.main(["train", "--resume", str(run)]) == 2
        message = capsys.readouterr().err
        assert "(test, train) have changed since" in message
        assert "start a new run" in message
        # A model file has no run: its images are read at its own size.
        copy = shutil.copy(run / "last.keras", tmp_path / "net.keras")
        command = ["evaluate", str(copy), "--dataset", str(images)]
        assert cli.main(command) == 0
    finally:
        shutil.rmtree(images)
        shutil.move(backup, images)
