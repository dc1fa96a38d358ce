"""Shapes: ten classes of 32x32 images drawn by code, with no download.

Each image shows one large figure (with random position, size, rotation and
colours) over clutter: a gradient, soft blobs, lines and small figures cut by
the border. Another line may cross the figure, and noise covers everything. No
class becomes another when it is flipped or rotated.

All arithmetic after the random numbers is `+ - * / %`, square roots and
comparisons of floats, which IEEE 754 rounds the same way everywhere. The bytes
are therefore the same on every machine, and can be verified like any dataset's.
"""

import numpy as np

from keras_resnet_cifar.errors import InputError

SIZE = 32
# Bounds the memory; images depend on it, since chunks share one generator.
_CHUNK = 500


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws images uint8 `[count, 32, 32, 3]` and labels uint8 `[count]`.

    Labels are shuffled indices into `FIGURES`; class counts differ by one at
    most. The same arguments give the same bytes, but the images of a smaller
    `count` are not the first ones of a larger one.
    """
    for name, value, least in (("count", count, 1), ("seed", seed, 0)):
        if value < least:
            raise InputError(
                f"{name} must be {least} or more. Received: {name}={value}"
            )
    rng = np.random.Generator(np.random.PCG64(seed))
    order = np.argsort(rng.random(count), kind="stable")
    labels = (order % len(FIGURES)).astype("uint8")
    chunks = np.split(labels, range(_CHUNK, count, _CHUNK))
    return np.concatenate([_scenes(chunk, rng) for chunk in chunks]), labels


def _scenes(labels, rng):
    """uint8 images `[n, 32, 32, 3]`, one figure of each label."""
    n = len(labels)
    ground = _uniform(rng, 0, 1, n, 3)
    image = _gradient(ground, 0.35, rng)
    for mask in 3 * [_blob] + 2 * [_line] + 2 * [_border_figure]:
        image = _paint(image, _near(ground, rng), mask(n, rng))
    # At least a quarter away from the ground in every channel, on a circle.
    colour = (ground + _uniform(rng, 0.25, 0.75, n, 3)) % 1
    image = _paint(image, _gradient(colour, 0.2, rng), _figure(labels, rng))
    image = _paint(image, _near(ground, rng), _line(n, rng))
    # Triangular noise, of another strength for each image.
    strength = _uniform(rng, 0.02, 0.15, n, 1, 1, 1)
    grain = rng.random(image.shape, "float32")
    image = image + strength * (grain - rng.random(image.shape, "float32"))
    return np.rint(np.clip(image, 0, 1) * 255).astype("uint8")


# Layers. Colours are float32 in [0, 1], `[n, 3]` for a ground, `[n, 32, 32, 3]`
# or `[n, 1, 1, 3]` for paint; a mask is the opacity, float32 `[n, 32, 32]`.


def _uniform(rng, low, high, *shape):
    """float32 values of `shape`, uniform from low to high."""
    return (low + (high - low) * rng.random(shape)).astype("float32")


def _paint(image, colour, mask):
    return image + mask[..., None] * (colour - image)


def _near(ground, rng):
    """Colours between the ground's and any: fainter than a figure."""
    n = len(ground)
    other = _uniform(rng, 0, 1, n, 3)
    colour = ground + _uniform(rng, 0.15, 0.6, n, 1) * (other - ground)
    return colour[:, None, None]


def _gradient(colour, strength, rng):
    """Images of the colours, shaded along a random direction."""
    x, _ = _frame(len(colour), rng, reach=0, scale=(SIZE / 2, SIZE / 2))
    slope = _uniform(rng, -strength, strength, len(colour), 3)
    return colour[:, None, None] + x[..., None] * slope[:, None, None]


def _blob(n, rng):
    x, y = _frame(n, rng, reach=16, scale=(3, 9))
    return np.clip(1 - (x * x + y * y), 0, 1)


def _line(n, rng):
    _, y = _frame(n, rng, reach=12, scale=(1, 1))
    width = _uniform(rng, 0.3, 1, n, 1, 1)  # 1 to 2 px with its soft edges
    return np.clip(0.5 - (np.abs(y) - width), 0, 1)


def _border_figure(n, rng):
    labels = (rng.random(n) * len(FIGURES)).astype("uint8")
    near = _uniform(rng, -14, 14, n)
    edge = np.where(rng.random(n) < 0.5, np.float32(-15), np.float32(15))
    upright = rng.random(n) < 0.5
    centre = np.where(upright, [near, edge], [edge, near])
    return _figure(labels, rng, centre, scale=(3.5, 6))


def _figure(labels, rng, centre=None, scale=(8.5, 13)):
    n = len(labels)
    scale = _uniform(rng, *scale, n)
    if centre is None:
        centre = (15 - scale) * _uniform(rng, -1, 1, 2, n)
    x, y = _rotated(centre, scale, rng)
    distance = np.empty_like(x)
    for label, function in enumerate(FIGURES.values()):
        chosen = labels == label
        distance[chosen] = function(x[chosen], y[chosen])
    return np.clip(0.5 - distance * scale[:, None, None], 0, 1)


# Pixel coordinates, float32 x and y `[n, 32, 32]`, in frames of which the
# centres `[2, n]` are in pixels from the middle of the image and the scales
# `[n]` in pixels per unit.


def _frame(n, rng, reach, scale):
    """Random frames about centres within `reach` px of the middle."""
    centre = _uniform(rng, -reach, reach, 2, n)
    return _rotated(centre, _uniform(rng, *scale, n), rng)


def _rotated(centre, scale, rng):
    axis = np.arange(SIZE, dtype="float32") - (SIZE - 1) / 2
    x = (axis - centre[0][:, None])[:, None, :]
    y = (axis - centre[1][:, None])[:, :, None]
    chosen = (rng.random(len(scale)) * _DIRECTIONS.shape[1]).astype(int)
    cos, sin = (_DIRECTIONS[:, chosen] / scale)[:, :, None, None]
    return cos * x + sin * y, cos * y - sin * x


def _circle_of_directions(count):
    """Unit vectors `[2, count]`, float32.

    Rounded to a grid of float32, so that a platform's last digit of a cosine
    does not matter.
    """
    angle = 2 * np.pi * np.arange(count) / count
    grid = 1 << 20
    vectors = np.rint(np.stack([np.cos(angle), np.sin(angle)]) * grid) / grid
    return vectors.astype("float32")


_DIRECTIONS = _circle_of_directions(1024)


# Figures: signed distance (negative inside) of the points x, y, in a frame
# where a figure reaches from about -1 to 1.


def _radius(x, y):
    return np.sqrt(x * x + y * y)


def _sides(x, y, count, apothem):
    """The distances `[count, ...]` to the sides of a polygon."""
    sides = _circle_of_directions(count).T
    return np.stack([a * x + b * y - apothem for a, b in sides])


def _box(x, y, width, height):
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


def _heart(x, y):
    # A square with a half disc on each of two neighbouring sides.
    half = 0.55
    x, y = x + 0.2, y + 0.2
    lobes = np.minimum(_radius(x - half, y), _radius(x, y - half)) - half
    return np.minimum(_box(x, y, half, half), lobes)


def _arrow(x, y):
    shaft = _box(x + 0.45, y, 0.5, 0.2)
    slant = (x + np.abs(y) - 0.95) / 2**0.5
    return np.minimum(shaft, np.maximum(slant, 0.1 - x))


FIGURES = {
    "circle": lambda x, y: _radius(x, y) - 0.85,
    "ring": lambda x, y: np.abs(_radius(x, y) - 0.7) - 0.2,
    "square": lambda x, y: _box(x, y, 0.75, 0.75),
    "triangle": lambda x, y: _sides(x, y, 3, 0.5).max(axis=0),
    "pentagon": lambda x, y: _sides(x, y, 5, 0.75).max(axis=0),
    # A pentagram is where at most one of five sides lies behind the point.
    "star": lambda x, y: np.sort(_sides(x, y, 5, 0.34), axis=0)[-2],
    "cross": lambda x, y: np.minimum(
        _box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95)
    ),
    "crescent": lambda x, y: np.maximum(
        _radius(x, y) - 0.9, 0.7 - _radius(x - 0.45, y)
    ),
    "heart": _heart,
    "arrow": _arrow,
}
