"""Training curves, confusion matrix and mistakes as PNG files.

Figures are objects of their own: no pyplot, no display, no global state.
matplotlib is imported when a figure is made, since that takes a while.
"""

import math

import numpy as np

from keras_resnet_cifar.files import atomic_write

_TRAIN, _VALIDATION = "#1f77b4", "#d62728"
# Counts in the cells stay readable up to here.
_MOST_CLASSES_WITH_TEXT = 20


def plot_curves(history, path):
    """Draws loss, accuracy and learning rate by epoch, final values named.

    Args:
        history: List of dicts, one for each epoch, with `epoch` (from 1) and
            any of `loss`, `accuracy`, `val_loss`, `val_accuracy`,
            `learning_rate`, `images_per_second`. A value that is absent,
            None, empty or not finite is left out.
        path: PNG file to write.

    Raises:
        InputError: The file cannot be written.
    """
    figure = _figure(13, 4)
    axes = figure.subplots(1, 3)
    both = {"train": "", "validation": "val_"}
    _curves(axes[0], history, "loss", both)
    _curves(axes[1], history, "accuracy", both)
    _curves(axes[2], history, "learning_rate", {"": ""})
    _, speed = _series(history, "images_per_second")
    if speed.size:
        figure.suptitle(f"{np.median(speed):,.0f} images a second (median)")
    _save(figure, path)


def plot_confusion(confusion, class_names, path):
    """Draws a confusion matrix; colours are shares of the true class.

    The colour scale is a square root, so that a confusion of 1 % shows.

    Args:
        confusion: Integer `[C, C]`, counts: rows are true, columns predicted.
        class_names: C names.
        path: PNG file to write.

    Raises:
        InputError: The file cannot be written.
    """
    from matplotlib.colors import PowerNorm

    confusion = np.asarray(confusion)
    classes = len(confusion)
    with_text = classes <= _MOST_CLASSES_WITH_TEXT
    side = 2.2 + classes * (0.5 if with_text else 0.15)
    font = 9 if with_text else 7
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)

    figure = _figure(side + 0.8, side)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    figure.colorbar(
        image, label="share of the true class", shrink=0.6, aspect=4 * side
    )
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_xticks(range(classes), class_names, rotation=90, fontsize=font)
    axes.set_yticks(range(classes), class_names, fontsize=font)
    if with_text:
        for (row, column), count in np.ndenumerate(confusion):
            axes.text(
                column,
                row,
                str(count),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share[row, column] > 0.25 else "black",
            )
    _save(figure, path)


def plot_mistakes(images, labels, predicted, probabilities, class_names, path):
    """Draws images in a grid, each with what it is and was taken for.

    Args:
        images: uint8 `[N, H, W, 3]` from 0 to 255; N may be 0.
        labels: Integer `[N]`, true classes.
        predicted: Integer `[N]`, predicted classes.
        probabilities: Float `[N]` from 0 to 1, of the predicted classes.
        class_names: Names of the classes.
        path: PNG file to write.

    Raises:
        InputError: The file cannot be written.
    """
    columns = min(max(math.ceil(math.sqrt(len(images))), 1), 6)
    rows = max(math.ceil(len(images) / columns), 1)
    longest = max(map(len, class_names)) + len("→  100 %")
    cell = max(2, 0.075 * longest)  # inches; a character of 9 points is 0.075
    figure = _figure(cell * columns, (cell + 0.5) * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    mistakes = zip(images, labels, predicted, probabilities, strict=True)
    for axes, (image, label, guess, probability) in zip(
        grid, mistakes, strict=False
    ):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(
            f"{class_names[label]}\n"
            f"→ {class_names[guess]} {100 * probability:.0f} %",
            fontsize=9,
        )
    if not len(images):
        grid[0].text(0.5, 0.5, "no mistakes", ha="center", va="center")
    _save(figure, path)


def _figure(width, height):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure, path):
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _curves(axes, history, key, prefixes):
    """Draws a value; `prefixes` maps the label of a curve to its prefix."""
    from matplotlib.ticker import MaxNLocator

    for (label, prefix), colour in zip(
        prefixes.items(), (_TRAIN, _VALIDATION), strict=False
    ):
        epochs, values = _series(history, prefix + key)
        if values.size:
            label = f"{label} final {values[-1]:.4g}".strip()
            axes.plot(epochs, values, ".-", color=colour, label=label)
    axes.set_title(key.replace("_", " "))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="best")


def _series(history, key):
    """Returns the epochs and the values of a column, where it has any."""
    rows = [
        (float(row["epoch"]), float(row[key]))
        for row in history
        if row.get(key) not in (None, "") and math.isfinite(float(row[key]))
    ]
    epochs, values = np.array(rows, "float64").reshape(-1, 2).T
    return epochs, values
