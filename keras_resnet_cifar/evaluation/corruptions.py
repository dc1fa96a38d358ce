"""The corruptions of Hendrycks and Dietterich, at five severities.

Definitions and constants are those of CIFAR-10-C (Hendrycks and Dietterich
2019, arXiv:1903.12261; hendrycks/robustness, make_cifar_c.py), whose unit of
length is a pixel of a 32x32 image. There are two differences: `frost` is drawn
instead of cut out of photographs, and the distances in `spatter` are exact,
while OpenCV approximates them. The random numbers differ, too.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from keras_resnet_cifar.data.splits import Split
from keras_resnet_cifar.errors import InputError, check_name, explained

SEVERITIES = range(1, 6)
_TOGETHER = 500 * 32 * 32  # pixels corrupted at once, to bound the memory


# --- Shared functions. Images x are float64 `[N, H, W, 3]`, 0 to 255; layers
# are `[N, H, W]`.


def _blurred(x, sigma, mode="nearest", truncate=4.0):
    return ndimage.gaussian_filter(
        x, sigma, mode=mode, truncate=truncate, axes=(1, 2)
    )


def _motion_blurred(x, radius, sigma, degrees):
    """Blurs in one direction, as ImageMagick does."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    angle = np.radians(degrees)[:, None, None]
    image, row, column = np.ogrid[tuple(map(slice, x.shape[:3]))]
    total = np.zeros_like(x)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        y = row + np.ceil(step * np.sin(angle) - 0.5).astype(int)
        z = column + np.ceil(step * np.cos(angle) - 0.5).astype(int)
        y, z = y.clip(0, x.shape[1] - 1), z.clip(0, x.shape[2] - 1)
        total += weight * x[image, y, z]
    return np.floor(total + 1e-6)


def _zoomed(x, factor):
    """Enlarges by linear interpolation, and crops the centre."""
    rows, columns = (_zoom(side, factor) for side in x.shape[1:3])
    return np.einsum("ij,kl,njl...->nik...", rows, columns, x, optimize=True)


def _zoom(side, factor):
    crop = int(np.ceil(side / factor))
    size = round(crop * factor)
    place = np.arange(side) + (size - side) // 2
    place = place * (crop - 1) / max(size - 1, 1)
    left = np.floor(place).astype(int).clip(0, max(crop - 2, 0))
    first = (side - crop) // 2 + left
    matrix = np.zeros((side, side))
    matrix[range(side), first] = 1 - (place - left)
    matrix[range(side), np.minimum(first + 1, side - 1)] += place - left
    return matrix


def _clouds(x, decay, rng):
    """Returns layers by the diamond-square algorithm, 0 to 1."""
    count, height, width = x.shape[:3]
    step, wibble = 1 << (max(height, width) - 1).bit_length(), 100.0
    clouds = np.zeros((count, step, step))

    def fill(part, near, far):
        noise = rng.uniform(-wibble, wibble, part.shape)
        part[:] = (near + far) / 4 + wibble * noise

    while step > 1:
        half = step // 2
        corners = clouds[:, ::step, ::step]
        centres = clouds[:, half::step, half::step]
        above = corners + np.roll(corners, -1, 2)
        fill(centres, above, np.roll(above, -1, 1))
        between = centres + np.roll(centres, 1, 1)
        fill(clouds[:, ::step, half::step], between, above)
        between = centres + np.roll(centres, 1, 2)
        beside = corners + np.roll(corners, -1, 1)
        fill(clouds[:, half::step, ::step], between, beside)
        step, wibble = half, wibble / decay
    clouds -= clouds.min(axis=(1, 2), keepdims=True)
    clouds /= clouds.max(axis=(1, 2), keepdims=True)
    return clouds[:, :height, :width]


def _sampled(x, rows, columns, mode):
    """Returns x at fractional places `[N, H, W]`, by linear interpolation."""
    n = np.arange(len(x))[:, None, None]
    places = np.stack(np.broadcast_arrays(n, rows, columns)).astype(float)
    planes = [
        ndimage.map_coordinates(plane, places, order=1, mode=mode)
        for plane in np.moveaxis(x, -1, 0)
    ]
    return np.stack(planes, axis=-1)


def _with_hsv(x, channel, factor, shift):
    """Scales and shifts a channel of images in hue, saturation, value."""
    from matplotlib import colors

    hsv = colors.rgb_to_hsv(x / 255)
    hsv[..., channel] = hsv[..., channel] * factor + shift
    return 255 * colors.hsv_to_rgb(hsv.clip(0, 1))


def _by_pillow(x, change):
    from PIL import Image

    images = map(Image.fromarray, x.astype("uint8"))
    return np.stack([np.asarray(change(image)) for image in images])


# --- The corruptions: (images, constants of the severity, generator) -> images


def _gaussian_noise(x, c, rng):
    return x + rng.normal(0, 255 * c, x.shape)


def _shot_noise(x, c, rng):
    return rng.poisson(x / 255 * c) / c * 255


def _impulse_noise(x, c, rng):
    chance = rng.random(x.shape)
    return np.where(chance < c, np.where(chance < c / 2, 0, 255), x)


def _speckle_noise(x, c, rng):
    return x + x * rng.normal(0, c, x.shape)


def _gaussian_blur(x, c, rng):
    return _blurred(x, c)


def _defocus_blur(x, c, rng):
    radius, smooth = c
    axis = np.arange(-8, 9)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).astype(float)
    taps = np.exp(-np.array([1, 0, 1]) / (2 * smooth**2))
    kernel = np.outer(taps, taps) / (taps.sum() ** 2 * disk.sum())
    disk = ndimage.correlate(disk, kernel)
    return ndimage.correlate(x, disk[None, ..., None], mode="mirror")


def _glass_blur(x, c, rng):
    sigma, reach, times = c
    x, n = np.floor(_blurred(x, sigma)), np.arange(len(x))
    rows, columns = (range(side - reach, reach, -1) for side in x.shape[1:3])
    for _ in range(times):
        for row in rows:
            for column in columns:
                y, z = rng.integers(-reach, reach, (2, len(x)))
                # The original intends to swap the two, but copies one.
                x[:, row, column] = x[n, row + y, column + z]
    return _blurred(x, sigma)


def _motion_blur(x, c, rng):
    return _motion_blurred(x, *c, rng.uniform(-45, 45, len(x)))


def _zoom_blur(x, c, rng):
    factors = np.arange(1, c, 0.01)
    total = sum(_zoomed(x, factor) for factor in factors)
    return (x + total) / (len(factors) + 1)


def _snow(x, c, rng):
    mean, deviation, zoom, threshold, radius, sigma, fade = c
    layer = _zoomed(rng.normal(mean, deviation, x.shape[:3]), zoom)
    layer = np.floor(np.where(layer < threshold, 0, layer).clip(0, 1) * 255)
    degrees = rng.uniform(-135, -45, len(x))
    layer = _motion_blurred(layer, radius, sigma, degrees)
    grey = (x @ (0.299, 0.587, 0.114))[..., None] * 1.5 + 127.5
    x = fade * x + (1 - fade) * np.maximum(x, grey)
    return x + (layer + layer[:, ::-1, ::-1])[..., None]


# Mean colour of the five photographs at a fifth of their size, and deviation
# within 32x32 pixels of them, of which 0.6 is noise from pixel to pixel.
_FROST = (
    *((78, 149, 166, 17), (201, 205, 214, 19), (201, 205, 214, 19)),
    *((138, 153, 165, 23), (112, 123, 135, 33)),
)


def _frost(x, c, rng):
    keep, strength = c
    *colour, deviation = np.array(_FROST)[rng.integers(5, size=len(x))].T
    clouds = _clouds(x, 1.3, rng)
    clouds -= clouds.mean(axis=(1, 2), keepdims=True)
    clouds *= np.sqrt(0.4) / clouds.std(axis=(1, 2), keepdims=True)
    clouds += rng.laplace(0, np.sqrt(0.6 / 2), clouds.shape)
    clouds *= deviation[:, None, None]
    frost = np.stack(colour, axis=1)[:, None, None] + clouds[..., None]
    return keep * x + strength * frost.clip(0, 255)


def _fog(x, c, rng):
    strength, decay = c
    clouds = _clouds(x, decay, rng)[..., None]
    most = x.max(axis=(1, 2, 3), keepdims=True)
    strength *= 255
    return (x + strength * clouds) * most / (most + strength)


def _spatter(x, c, rng):
    mean, deviation, sigma, threshold, strength, mud = c
    layer = _blurred(rng.normal(mean, deviation, x.shape[:3]), sigma)
    if mud:
        drops = _blurred((layer > threshold).astype(float), strength)
        drops = np.where(drops < 0.8, 0, drops)[..., None]
        return x * (1 - drops) + drops * (63, 42, 20)
    layer = np.floor(np.where(layer < threshold, 0, layer) * 255) % 256
    # Images are far apart, so that distances do not cross them.
    distance = ndimage.distance_transform_edt(
        ~_edges(layer, 50, 150), sampling=(1e6, 1, 1)
    )
    distance = (_mean3(distance.clip(0, 20)) + 1e-6).astype(int)
    distance = np.stack([_equalized(image) for image in distance])
    relief = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])[None]
    drops = ndimage.correlate(distance, relief, mode="mirror").clip(0, 255)
    drops = layer * np.round(_mean3(drops.astype(float)))
    drops /= np.maximum(drops.max(axis=(1, 2), keepdims=True), 1e-9)
    return x + strength * drops[..., None] * (175, 238, 238)


def _mean3(x):
    return ndimage.uniform_filter(x, 3, mode="mirror", axes=(1, 2))


def _equalized(image):
    """Equalizes the histogram of integers 0 to 255, as OpenCV does."""
    below = np.bincount(image.ravel(), minlength=256).cumsum()
    first = below[below > 0][0]
    if first == image.size:
        return image
    return np.round((below - first) * 255 / (image.size - first))[image]


def _edges(x, low, high):
    """Returns the edges of layers by Canny's algorithm, as in OpenCV."""
    across, along = (ndimage.sobel(x, k, mode="nearest") for k in (2, 1))
    slope = np.abs(across) + np.abs(along)
    around = np.pad(slope, ((0, 0), (1, 1), (1, 1)))
    height, width = x.shape[1:]

    def beside(y, z):
        return around[:, 1 + y : 1 + y + height, 1 + z : 1 + z + width]

    steepness = np.tan(np.pi / 8)
    flat = np.abs(along) < steepness * np.abs(across)
    steep = np.abs(across) * (steepness + 2) < np.abs(along)
    thin = np.select(
        [flat, steep, across * along >= 0],
        [
            (slope > beside(0, -1)) & (slope >= beside(0, 1)),
            (slope > beside(-1, 0)) & (slope >= beside(1, 0)),
            (slope > beside(-1, -1)) & (slope > beside(1, 1)),
        ],
        (slope > beside(-1, 1)) & (slope > beside(1, -1)),
    )
    weak = thin & (slope > low)
    return ndimage.binary_propagation(
        weak & (slope > high), mask=weak, structure=np.ones((1, 3, 3))
    )


def _brightness(x, c, rng):
    return _with_hsv(x, 2, 1, c)


def _saturate(x, c, rng):
    return _with_hsv(x, 1, *c)


def _contrast(x, c, rng):
    mean = x.mean(axis=(1, 2), keepdims=True)
    return (x - mean) * c + mean


def _elastic_transform(x, c, rng):
    height, width = x.shape[1:3]
    amount, sigma, jitter = (min(height, width) * value for value in c)
    middle, third = min(height, width) // 2, min(height, width) // 3
    corners = middle + third * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + rng.uniform(-jitter, jitter, (len(x), 3, 2))
    # The affine map from the moved corners back to where they were.
    back = np.linalg.solve(np.insert(moved, 2, 1, axis=2), corners[None])
    row, column = np.mgrid[:height, :width]
    grid = np.stack([column, row, np.ones_like(row)], axis=-1)
    places = np.einsum("hwi,nij->jnhw", grid, back)
    x = _sampled(x, places[1], places[0], "mirror")
    shift = rng.uniform(-1, 1, (2, *x.shape[:3]))
    right, down = (amount * _blurred(s, sigma, "reflect", 3) for s in shift)
    return _sampled(x, row + down, column + right, "reflect")


def _pixelate(x, c, rng):
    from PIL import Image

    def change(image):
        small = [max(int(side * c), 1) for side in image.size]
        box = Image.Resampling.BOX
        return image.resize(small, box).resize(image.size, box)

    return _by_pillow(x, change)


def _jpeg_compression(x, c, rng):
    from PIL import Image

    def change(image):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=c)
        return Image.open(file)

    return _by_pillow(x, change)


# By name: the function, and its constants at each severity.
# fmt: off
CORRUPTIONS: dict[str, tuple[Callable, tuple[Any, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.1)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (_defocus_blur, (
        (0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (_glass_blur, (
        (0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion_blur": (_motion_blur, (
        (6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (_zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (_snow, (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8))),
    "frost": (_frost, (
        (1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (_elastic_transform, (
        (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (_jpeg_compression, (80, 65, 58, 50, 40)),
    # The four extra ones.
    "speckle_noise": (_speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1)),
    "spatter": (_spatter, (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0), (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0), (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1))),
    "saturate": (_saturate, (
        (0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
}
# fmt: on
STANDARD = tuple(CORRUPTIONS)[:15]  # those of the mean corruption error


def corrupt(
    images: np.ndarray, name: str, severity: int, seed: int = 0
) -> np.ndarray:
    """Returns images with one of the corruptions of CIFAR-10-C.

    Args:
        images: uint8 `[N, H, W, 3]`. The constants are for 32x32: larger
            images are corrupted less.
        name: One of `gaussian_noise`, `shot_noise`, `impulse_noise`,
            `defocus_blur`, `glass_blur`, `motion_blur`, `zoom_blur`, `snow`,
            `frost`, `fog`, `brightness`, `contrast`, `elastic_transform`,
            `pixelate`, `jpeg_compression`, `speckle_noise`, `gaussian_blur`,
            `spatter` and `saturate`.
        severity: 1 to 5.
        seed: Seed of the random numbers.

    Returns:
        uint8 `[N, H, W, 3]`.

    Raises:
        InputError: The name, the severity or the images are not as above.

    Example:
        >>> foggy = corrupt(data.test.images, "fog", severity=3)
    """
    check_name("corruption", name, CORRUPTIONS)
    if isinstance(severity, float) or severity not in SEVERITIES:
        raise InputError(f"severity={severity}: give 1 to 5")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise InputError(
            "images must be uint8 [N, H, W, 3]. Received: "
            f"{images.dtype} {images.shape}"
        )
    function, constants = CORRUPTIONS[name]
    result = np.empty_like(images)
    number = list(CORRUPTIONS).index(name)
    count = max(_TOGETHER // (images.shape[1] * images.shape[2]), 1)
    for start in range(0, len(images), count):
        part = slice(start, start + count)
        rng = np.random.default_rng([seed, number, severity, start])
        x = images[part].astype("float64")
        changed = function(x, constants[severity - 1], rng)
        result[part] = changed.clip(0, 255)  # truncated, as in the original
    return result


def read_corrupted(folder: str | Path) -> dict[str, Split]:
    """Opens the files of CIFAR-10-C, CIFAR-100-C or others of the same form.

    The folder has labels.npy, `[5 N]`, and, for each corruption, NAME.npy,
    uint8 `[5 N, H, W, 3]`: N images at each severity. Returns all images
    (memory-mapped) and their labels by corruption. Raises `InputError` if one
    of the first 15 is missing, or a file has another form.
    """
    folder = Path(folder)
    with explained(
        f"cannot read {folder}", "give a folder with the files of CIFAR-10-C"
    ):
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        found = {}
        for name in CORRUPTIONS:
            path = folder / f"{name}.npy"
            if name not in STANDARD and not path.exists():
                continue
            images = np.load(path, mmap_mode="r", allow_pickle=False)
            kind = images.dtype, images.ndim, labels.shape, len(labels) % 5
            if kind != (np.uint8, 4, images.shape[:1], 0):
                raise InputError(
                    f"{name}.npy is {images.dtype} {images.shape} for "
                    f"{labels.shape} labels"
                )
            found[name] = Split(images, labels)
    return found


def corrupted(
    split: Split, files: Mapping[str, Split] | None = None, count: int = 1000
) -> Iterator[tuple[str, Split]]:
    """Yields the name and the images of each corruption, by severity.

    `files`, from `read_corrupted`, replace the split. Each severity has at
    most `count` images; see `some_of`.
    """
    if files:
        for name, whole in files.items():
            size = len(whole) // len(SEVERITIES)
            chosen = _chosen(size, count) + size * np.arange(5)[:, None]
            chosen = chosen.ravel()
            yield name, Split(whole.images[chosen], whole.labels[chosen])
        return
    clean = some_of(split, count)
    labels = np.tile(clean.labels, len(SEVERITIES))
    for name in CORRUPTIONS:
        made = [corrupt(clean.images, name, s) for s in SEVERITIES]
        yield name, Split(np.concatenate(made), labels)


def some_of(split: Split, count: int) -> Split:
    """Returns at most `count` images of a split, the same each time."""
    chosen = _chosen(len(split), count)
    return Split(split.images[chosen], split.labels[chosen])


def _chosen(size, count):
    return np.sort(np.random.default_rng(0).permutation(size)[:count])
