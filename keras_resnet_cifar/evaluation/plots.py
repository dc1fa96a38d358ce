"""Draws training curves, a confusion matrix and mistakes as PNG files.

Figures are created without pyplot, a display or global state. Matplotlib, which
takes a while to import, is imported when a figure is drawn.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_resnet_cifar.evaluation.metrics import Mistakes, Reliability
from keras_resnet_cifar.files import atomic_write

if TYPE_CHECKING:
    from keras_resnet_cifar.data.load import Split

_CENTRED = {"ha": "center", "va": "center"}
# The range and the colour map are for grayscale images alone.
_PIXELS: dict[str, Any] = {
    "interpolation": "nearest",
    "cmap": "gray",
    "vmin": 0,
    "vmax": 255,
}
_MOST_CLASSES_WITH_TEXT = 20  # more would make the cells unreadable


def plot_curves(
    history: Sequence[dict[str, Any]],
    path: Path,
    title: str = "",
    rates: np.ndarray | None = None,
) -> None:
    """Draws loss, accuracy and learning rate by epoch.

    `history` has one dict per epoch, as in `Run`. Missing and non-finite values
    are left out. If several runs have the same epoch, their mean is drawn, with
    a band of ± one standard deviation. `rates`, float `[epochs, steps]`, are
    the learning rates of the steps, if known.
    """
    figure = _figure(13, 4)
    loss, accuracy, rate = figure.subplots(1, 3)
    _curves(loss, history, "loss", ("train", "validation"))
    _curves(accuracy, history, "accuracy", ("train", "validation"))
    _leave_out_outliers(loss)
    _curves(rate, history if rates is None else (), "learning_rate", ("",))
    if rates is not None:
        epochs = np.arange(rates.size) / rates.shape[-1]
        rate.plot(epochs, rates.ravel(), color="#1f77b4")
    _, speed = _series(history, "images_per_second")
    if speed.size:
        speed_text = f"{np.median(speed):,.0f} images per second (median)"
        title = "; ".join(filter(None, (title, speed_text)))
    figure.suptitle(title)
    _save(figure, path)


def plot_confusion(
    confusion: np.ndarray, class_names: Sequence[str], path: Path
) -> tuple[float, float, float, float]:
    """Draws a confusion matrix; colours are shares of the true class.

    Rows are true, columns predicted. Returns the position of the cells in the
    picture: left, top, right and bottom, in pixels from its upper left corner.
    """
    from matplotlib.colors import PowerNorm

    classes = len(confusion)
    with_text = classes <= _MOST_CLASSES_WITH_TEXT
    side = 2.2 + classes * (0.5 if with_text else 0.15)
    font = 9 if with_text else 7
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)

    figure = _figure(side + 0.8, side)
    axes = figure.subplots()
    # A square root, so that a confusion of 1 % shows.
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    figure.colorbar(
        image, label="share of the true class", shrink=0.6, aspect=4 * side
    )
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(range(classes), class_names, rotation=90, fontsize=font)
    axes.set_yticks(range(classes), class_names, fontsize=font)
    if with_text:
        for (row, column), count in np.ndenumerate(confusion):
            colour = "white" if share[row, column] > 0.25 else "black"
            axes.text(column, row, count, color=colour, fontsize=8, **_CENTRED)
    _save(figure, path)
    left, low, right, high = axes.get_window_extent().extents
    return left, figure.bbox.height - high, right, figure.bbox.height - low


def plot_mistakes(
    split: "Split", mistakes: Mistakes, class_names: Sequence[str], path: Path
) -> None:
    """Draws mistakes in a grid, each with its true and its predicted class."""
    count = len(mistakes.indices)
    columns = min(max(math.ceil(math.sqrt(count)), 1), 6)
    rows = max(math.ceil(count / columns), 1)
    longest = max(map(len, class_names)) + len("→  100 %")
    cell = max(2, 0.075 * longest)  # inches; a character of 9 points is 0.075
    figure = _figure(cell * columns, (cell + 0.5) * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, index, guess, probability in zip(grid, *mistakes, strict=False):
        axes.imshow(split.images[index], **_PIXELS)
        axes.set_title(
            f"{class_names[split.labels[index]]}\n"
            f"→ {class_names[guess]} {100 * probability:.0f} %",
            fontsize=9,
        )
    if not count:
        grid[0].text(0.5, 0.5, "no mistakes", **_CENTRED)
    _save(figure, path)


def plot_reliability(bins: Mapping[str, Reliability], path: Path) -> None:
    """Draws accuracy over confidence; the diagonal is perfect calibration.

    The keys of `bins` are the legends of the lines.
    """
    figure = _figure(6, 5)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    for label, (confidence, accuracy, _) in bins.items():
        full = np.isfinite(accuracy)
        axes.plot(confidence[full], accuracy[full], "o-", label=label)
    axes.set(xlabel="probability of the predicted class", ylabel="accuracy")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    _save(figure, path)


def plot_corruptions(
    accuracy: Mapping[str, Sequence[float]], clean: float, path: Path
) -> None:
    """Draws the accuracy of each corruption and severity as a heat map.

    `accuracy` has five values, 0 to 1, for each name; `clean` is the accuracy
    without a corruption.
    """
    names = [name.replace("_", " ") for name in accuracy]
    values = np.array(list(accuracy.values()))
    figure = _figure(6, 1.2 + 0.3 * len(names))
    axes = figure.subplots()
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(image, label="accuracy")
    title = f"accuracy in %; without a corruption {100 * clean:.1f}"
    axes.set(title=title, xlabel="severity")
    axes.set_xticks(range(values.shape[1]), range(1, values.shape[1] + 1))
    axes.set_yticks(range(len(names)), names)
    for (row, column), value in np.ndenumerate(values):
        colour = "black" if value > 0.6 else "white"
        text = f"{100 * value:.1f}"
        axes.text(column, row, text, color=colour, fontsize=8, **_CENTRED)
    _save(figure, path)


def plot_grad_cam(
    images: np.ndarray, heat: np.ndarray, titles: Sequence[str], path: Path
) -> None:
    """Draws images, 0 to 255, each with its heatmap from `grad_cam` below."""
    images = images.clip(0, 255).astype("uint8")  # floats would be 0 to 1
    columns = min(len(images), 6)
    rows = math.ceil(len(images) / columns)
    figure = _figure(2.2 * columns, 4.4 * rows)
    grid = figure.subplots(2 * rows, columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for number, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(number, columns)
        above, below = grid[2 * row : 2 * row + 2, column]
        above.imshow(image, **_PIXELS)
        above.set_title(title, fontsize=9)
        below.imshow(image, **_PIXELS)
        below.imshow(heat[number], cmap="inferno", alpha=0.6, vmin=0, vmax=1)
    _save(figure, path)


def _figure(width, height):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _save(figure, path):
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _curves(axes, history, key, labels):
    """Draws the values of a key for training and, if labelled, validation."""
    prefixes, colours = ("", "val_"), ("#1f77b4", "#d62728")
    for prefix, label, colour in zip(prefixes, labels, colours, strict=False):
        epochs, values = _series(history, prefix + key)
        if values.size:
            runs = {epoch: values[epochs == epoch] for epoch in epochs}
            means = np.array([run.mean() for run in runs.values()])
            spread = np.array(
                [run.std(ddof=run.size > 1) for run in runs.values()]
            )
            label = f"{label} final {means[-1]:.4g}".strip()
            if spread.any():
                label += f" ± {spread[-1]:.2g}"
                band = means - spread, means + spread
                axes.fill_between([*runs], *band, color=colour, alpha=0.2, lw=0)
            axes.plot([*runs], means, ".-", color=colour, label=label)
    axes.set(title=key.replace("_", " "), xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="best")


def _leave_out_outliers(axes):
    """Cuts off validation losses that would flatten all other values."""
    if len(axes.lines) < 2:
        return
    train, held_out = (line.get_ydata() for line in axes.lines)
    median = np.quantile(held_out, 0.5, method="lower")
    usual, highest = max(train.max(), median), held_out.max()
    if highest > 4 * usual:
        axes.set_ylim(0, 2 * usual)
        axes.set_title(f"{axes.get_title()} (up to {highest:.3g}, cut off)")


def _series(history, key):
    """Returns the epochs, in order, and the values of a column, if any."""
    rows = sorted(
        (float(row["epoch"]), float(row[key]))
        for row in history
        if row.get(key) not in (None, "") and math.isfinite(float(row[key]))
    )
    return np.array(rows, "float64").reshape(-1, 2).T
