"""The results that the page shows for one net, without the page itself."""

from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from keras_resnet_cifar.data.images import read_image
from keras_resnet_cifar.data.load import Dataset, Split
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation.calibration import fit_temperature
from keras_resnet_cifar.evaluation.evaluate import logits_of
from keras_resnet_cifar.evaluation.grad_cam import grad_cam
from keras_resnet_cifar.evaluation.metrics import (
    most_confident_mistakes,
    score,
    softmax,
)
from keras_resnet_cifar.evaluation.plots import plot_curves
from keras_resnet_cifar.models.saving import check_classifier
from keras_resnet_cifar.training.run_directory import RunDirectory, read_csv

_UNSURE = 0.05  # below this share of known images, a picture is unusual

Captioned = list[tuple[np.ndarray, str]]  # uint8 `[H, W, 3]` and a line


class Answer(NamedTuple):
    """A net's results for one picture."""

    image: np.ndarray  # uint8 `[H, W, 3]`, at the size that the net sees
    probabilities: np.ndarray  # float64 `[C]`, calibrated if that is possible
    hint: str  # a sentence that compares the confidence with known images
    nearest: Captioned  # training images, the most similar first


class Explorer:
    """Computes what the page shows for a net and its dataset.

    The net, which is not modified, must be one that `grad_cam` accepts, and
    must not have been trained on the validation split, if there is one, because
    the temperature is fitted on it. Pictures are compared with `train_images`
    training images, drawn with seed 0.
    """

    def __init__(
        self,
        model: keras.Model,
        data: Dataset,
        name: str,
        run: RunDirectory | None = None,
        train_images: int = 10_000,
    ):
        self.model, self.name, self.run = model, name, run
        self._drawn: dict[Path, int] = {}  # modification times of history.csv
        if data.test is None:
            raise InputError(f"{data.name} has no test split: give one")
        self.class_names, self.test = data.class_names, data.test
        check_classifier(model, data.num_classes, self.test.images.shape[1:])
        grad_cam(model, self.test.images[:1])  # it refuses other heads
        pooling, dense = model.layers[-2:]
        self._pooled = keras.Model(model.inputs, pooling.output)
        self._kernel, *self._bias = dense.get_weights()

        shuffled = np.random.default_rng(0).permutation(len(data.train))
        chosen = shuffled[:train_images]
        self.train = Split(data.train.images[chosen], data.train.labels[chosen])
        self._train_features = _unit(self._features(self.train.images))
        logits = known = self._head(self._features(self.test.images))
        self.result = score(logits, self.test.labels, self.class_names)

        self.temperature: float | None = None
        self._known = "test"
        if data.validation is not None:
            known = self._head(self._features(data.validation.images))
            self.temperature = fit_temperature(known, data.validation.labels)
            self._known = "validation"
        self._logits = logits / (self.temperature or 1)
        self._probabilities = self._calibrated(logits)
        self._confidences = self._calibrated(known).max(axis=1)

    def _features(self, images):
        return logits_of(self._pooled, images)

    def _head(self, features):
        return features @ self._kernel + sum(self._bias)

    def _calibrated(self, logits):
        return softmax(logits / (self.temperature or 1))

    def summary(self) -> str:
        """Returns the accuracy, and whether probabilities are calibrated."""
        how = "are not calibrated: there is no validation split"
        if self.temperature is not None:
            how = f"are calibrated (temperature {self.temperature:.2f})"
        top1, n = self.result.top1, self.result.n
        return f"Top-1 {top1:.2%} of {n:,} test images. Probabilities {how}."

    def answer(self, picture: str | Path, nearest: int = 8) -> Answer:
        """Returns the results for an image file, as for `open_image`."""
        image = read_image(picture, self.test.images.shape[1:3])
        features = self._features(image[None])
        (probabilities,) = self._calibrated(self._head(features))
        similarity = self._train_features @ _unit(features)[0]
        shown = []
        for i in np.argsort(-similarity, kind="stable")[:nearest]:
            name = self.class_names[self.train.labels[i]]
            shown.append((self.train.images[i], f"{name} {similarity[i]:.2f}"))
        return Answer(image, probabilities, self._hint(probabilities), shown)

    def _hint(self, probabilities):
        share = (self._confidences <= probabilities.max()).mean()
        strange = "the net may not know this kind of picture"
        return (
            "The net is at least as confident about this picture as about "
            f"{share:.0%} of the {self._known} images: "
            f"{strange if share < _UNSURE else 'nothing unusual'}."
        )

    def explain(self, image: np.ndarray, class_id: int) -> np.ndarray:
        """Returns an image, uint8 `[H, W, 3]`, with the heatmap of a class."""
        from matplotlib import colormaps

        heat = grad_cam(self.model, image[None], class_id)[0]
        colours = 255 * colormaps["inferno"](heat)[..., :3]
        return (0.4 * image + 0.6 * colours).astype("uint8")

    def mistakes(self, count: int = 24) -> Captioned:
        """Returns the most confident mistakes among the test images."""
        wrong = most_confident_mistakes(self._logits, self.test.labels, count)
        return self._captioned(wrong.indices)

    def cell(self, true: int, predicted: int, count: int = 24) -> Captioned:
        """Returns test images of a cell of the confusion matrix."""
        there = self._probabilities.argmax(axis=1) == predicted
        there &= self.test.labels == true
        order = np.argsort(-self._probabilities[:, predicted], kind="stable")
        return self._captioned(order[there[order]][:count])

    def _captioned(self, indices):
        rows = []
        for i in indices:
            guess = self._probabilities[i].argmax()
            names = [self.class_names[c] for c in (self.test.labels[i], guess)]
            share = f"{self._probabilities[i, guess]:.0%}"
            rows.append((self.test.images[i], f"{' → '.join(names)} {share}"))
        return rows

    def draw_curves(self, path: Path) -> str | None:
        """Draws the curves of the run again if history.csv has changed.

        Returns the PNG file, or `None` if there is no history yet.
        """
        if self.run is None or not self.run.history.is_file():
            return None
        changed = self.run.history.stat().st_mtime_ns
        if changed != self._drawn.get(path):
            plot_curves(read_csv(self.run.history), path, self.name)
            self._drawn[path] = changed
        return str(path)


def _unit(vectors):
    """Scales vectors `[N, F]` to length 1, for cosine similarities."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)
