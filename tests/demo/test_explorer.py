"""What the page shows, asked without a page."""

import shutil
import struct
import zlib

import keras
import numpy as np
import pytest
from helpers import refusal
from PIL import Image

from keras_resnet_cifar.data.load import Dataset
from keras_resnet_cifar.demo.explorer import Explorer
from keras_resnet_cifar.evaluation.calibration import fit_temperature
from keras_resnet_cifar.evaluation.evaluate import logits_of
from keras_resnet_cifar.evaluation.grad_cam import grad_cam
from keras_resnet_cifar.evaluation.metrics import softmax
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.training.run_directory import RunDirectory


@pytest.fixture(scope="module")
def model():
    return build_resnet("resnet8", weights="shapes")


@pytest.fixture(scope="module")
def explorer(model, tiny_data):
    return Explorer(model, tiny_data, "a net", train_images=200)


@pytest.fixture
def saved(tmp_path):
    """Saves an array as a PNG; returns the path."""

    def save(image):
        Image.fromarray(image).save(tmp_path / "picture.png")
        return tmp_path / "picture.png"

    return save


def test_an_answer_names_the_class(explorer, tiny_data, saved):
    image, label = tiny_data.test.images[0], tiny_data.test.labels[0]
    answer = explorer.answer(saved(image))
    np.testing.assert_array_equal(answer.image, image)
    assert answer.probabilities.argmax() == label
    assert answer.probabilities.sum() == pytest.approx(1)
    assert "of the validation images" in answer.hint


def test_probabilities_are_calibrated(explorer, model, tiny_data, saved):
    validation, image = tiny_data.validation, tiny_data.test.images[1]
    temperature = fit_temperature(
        logits_of(model, validation.images), validation.labels
    )
    # The page's logits are computed by NumPy from the features.
    assert explorer.temperature == pytest.approx(temperature, rel=1e-3)
    logits = logits_of(model, image[None])
    np.testing.assert_allclose(
        explorer.answer(saved(image)).probabilities,
        softmax(logits / explorer.temperature)[0],
        atol=1e-5,
    )
    assert "(temperature" in explorer.summary()


def test_without_a_validation_split_it_says_so(model, tiny_data, saved):
    data = Dataset(
        name="shapes",
        train=tiny_data.train,
        test=tiny_data.test,
        class_names=tiny_data.class_names,
    )
    explorer = Explorer(model, data, "a net")
    image = tiny_data.test.images[2]
    answer = explorer.answer(saved(image))
    expected = softmax(logits_of(model, image[None]))[0]
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5)
    assert "not calibrated: there is no validation split" in explorer.summary()
    assert "of the test images" in answer.hint


def test_a_picture_of_nothing_is_hinted_at(explorer, tiny_data, saved):
    share = np.mean(
        [
            "nothing unusual" in explorer.answer(saved(image)).hint
            for image in tiny_data.validation.images[:20]
        ]
    )
    assert share > 0.9
    grey = np.full((32, 32, 3), 128, "uint8")
    assert "may not know" in explorer.answer(saved(grey)).hint


def test_the_nearest_of_a_training_image_is_itself(explorer, saved):
    image = explorer.train.images[5]
    nearest = explorer.answer(saved(image), nearest=3).nearest
    assert len(nearest) == 3
    np.testing.assert_array_equal(nearest[0][0], image)
    name = explorer.class_names[explorer.train.labels[5]]
    assert nearest[0][1] == f"{name} 1.00"
    assert len(explorer.train) == 200


def test_an_explanation_is_grad_cam_over_the_image(explorer, model):
    image = explorer.test.images[0]
    for class_id in (0, 3):
        heat = grad_cam(model, image[None], class_id)[0]
        shown = explorer.explain(image, class_id).astype(int)
        assert shown.shape == (32, 32, 3)
        bright, dark = heat > 0.9, heat == 0
        # inferno goes from black to pale yellow.
        assert shown[bright, 0].min() >= 0.6 * 240
        np.testing.assert_allclose(shown[dark], 0.4 * image[dark], atol=3)


def test_cells_have_the_images_that_the_matrix_counts(explorer):
    for (true, guess), count in np.ndenumerate(explorer.result.confusion):
        images = explorer.cell(true, guess, count=5)
        assert len(images) == min(count, 5)
        names = explorer.class_names[true], explorer.class_names[guess]
        assert all(line.startswith(" → ".join(names)) for _, line in images)


def test_mistakes_are_wrong(tiny_model, tiny_data):
    mistakes = Explorer(tiny_model(), tiny_data, "untrained").mistakes(7)
    assert len(mistakes) == 7
    for _, line in mistakes:
        true, guess = line.rsplit(" ", 1)[0].split(" → ")
        assert true != guess


@pytest.fixture
def files(tmp_path):
    """Pictures of many kinds, by name."""
    gradient = np.linspace(0, 255, 60 * 40 * 3).reshape(60, 40, 3)
    colour = Image.fromarray(gradient.astype("uint8"))
    deep = Image.fromarray(np.uint16(gradient[..., 0] * 257))
    exif = colour.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    palette = colour.quantize(8)
    pictures = {
        "cmyk.jpg": (colour.convert("CMYK"), {}),
        "turned.jpg": (colour, {"exif": exif}),
        "alpha.png": (colour.convert("RGBA"), {}),
        "grey and alpha.png": (colour.convert("LA"), {}),
        "palette.png": (palette, {"transparency": bytes(range(8))}),
        "bits.png": (colour.convert("1"), {}),
        "film.gif": (palette, {"save_all": True, "append_images": [palette]}),
        "small.bmp": (colour.resize((1, 1)), {}),
        "narrow.webp": (colour.resize((5000, 3)), {}),
        "deep.png": (deep, {}),
        "float.tiff": (deep.convert("F"), {}),
    }
    for name, (picture, options) in pictures.items():
        picture.save(tmp_path / name, **options)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(kind + body))
        chunks += struct.pack(">I", len(body)) + kind + body + crc
    (tmp_path / "bomb.png").write_bytes(chunks)
    return {path.name: path for path in tmp_path.iterdir()}


REFUSED = {
    "deep.png": "16",
    "float.tiff": "not 8-bit",
    "text.png": "cannot read",
    "empty.png": "cannot read",
    "bomb.png": "cannot read",
}


def test_pictures_of_any_kind(explorer, files):
    assert set(files) > set(REFUSED)
    for name, path in files.items():
        if name in REFUSED:
            line = refusal(explorer.answer, path)
            assert REFUSED[name] in line and name in line
        else:
            assert explorer.answer(path).image.shape == (32, 32, 3), name


def test_a_turned_photo_is_upright(explorer, files, saved):
    with Image.open(files["turned.jpg"]) as image:
        upright = np.rot90(np.asarray(image), -1)
    expected = explorer.answer(saved(np.ascontiguousarray(upright))).image
    seen = explorer.answer(files["turned.jpg"]).image
    np.testing.assert_array_equal(seen, expected)


def test_curves_follow_the_run(model, tiny_data, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    explorer = Explorer(model, tiny_data, "a net", run)
    curves = tmp_path / "curves.png"
    assert explorer.draw_curves(curves) is None
    drawn = []
    for rows in ("1,2.0,0.1\n", "1,2.0,0.1\n2,1.5,0.4\n"):
        run.history.write_text(f"epoch,loss,accuracy\n{rows}")
        assert explorer.draw_curves(curves) == str(curves)
        drawn.append(curves.read_bytes())
    assert drawn[0] != drawn[1]
    curves.unlink()
    explorer.draw_curves(curves)
    assert not curves.exists(), "drawn again though nothing has changed"
    shutil.rmtree(run.path)
    assert explorer.draw_curves(curves) is None


def test_another_head_is_refused(tiny_data):
    net = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    assert "build_resnet" in refusal(Explorer, net, tiny_data, "another")
