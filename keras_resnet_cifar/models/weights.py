"""The table of trained weights: in the package, or to download.

Those in the package are rows of shipped/weights.json, which
`scripts/ship_weights.py` writes from finished runs.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keras_resnet_cifar.errors import InputError, spelled, unknown
from keras_resnet_cifar.pytorch.files import FORMATS

SHIPPED = Path(__file__).with_name("shipped")
LARGEST, LARGEST_TOGETHER = 1_200_000, 5_000_000  # bytes of its files
HUB = "hf://"  # starts the names of repositories on the Hugging Face Hub
_GITHUB = "https://github.com"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A row: the weights of one net. `None` means that a value is not stated.

    Attributes:
        name: Their name in `build_resnet(weights=...)`.
        recipe: A name of `RECIPES`, or a description.
        top1: Accuracy of this file on the test split, 0 to 1; for weights of
            other projects, the published one.
        top1_mean: Mean accuracy of runs of the recipe with different seeds.
        seeds: Number of such runs.
        normalization: Normalization of the images: the name of a dataset, or
            of a scheme of `pytorch.schemes`.
        size: Bytes of the file.
        digest: `"sha256:"` or `"sha1:"` and the digits, or the first of them.
        licence: SPDX identifier.
        where: The file in the folder `SHIPPED`, or its address.
    """

    name: str
    arch: str
    dataset: str
    recipe: str
    epochs: int | None = None
    top1: float
    top1_mean: float | None = None
    seeds: int = 1
    normalization: str
    size: int | None = None
    digest: str
    licence: str
    where: str


def read_shipped(folder: Path = SHIPPED) -> list[Weights]:
    """Returns the rows of the package's weights, or of a folder like it."""
    text = (folder / "weights.json").read_text("utf-8")
    return [Weights(**row) for row in json.loads(text)]


def _chenyaofo(dataset, depth, digits, top1):
    file = f"{dataset}_resnet{depth}-{digits}.pt"
    return Weights(
        name=f"chenyaofo/{dataset}",
        arch=f"resnet{depth}-projection",
        dataset=dataset,
        recipe="cosine",
        epochs=200,
        top1=top1,
        normalization="chenyaofo",
        digest=f"sha256:{digits}",
        licence="BSD-3-Clause",
        where=f"{_GITHUB}/chenyaofo/pytorch-cifar-models/releases/download/"
        f"resnet/{file}",
    )


def _imgclsmob(dataset, depth, error, sha1, release):
    # The name contains the error in units of 0.01 % and the first digits of the
    # SHA-1 of the file inside the zip. The full SHA-1 is in the project's
    # pytorch/pytorchcv/models/model_store.py at that release.
    file = f"resnet{depth}_{dataset}-{error:04d}-{sha1[:8]}.pth.zip"
    return Weights(
        name=f"imgclsmob/{dataset}",
        arch=f"resnet{depth}-projection",
        dataset=dataset,
        recipe="not stated",
        top1=round(1 - error / 10_000, 4),
        normalization="imgclsmob",
        digest=f"sha1:{sha1}",
        licence="MIT",
        where=f"{_GITHUB}/osmr/imgclsmob/releases/download/v0.0.{release}/"
        + file,
    )


_OTHERS = [
    _chenyaofo("cifar10", 20, "4118986f", 0.9260),
    _chenyaofo("cifar10", 32, "ef93fc4d", 0.9353),
    _chenyaofo("cifar10", 44, "2a3cabcb", 0.9401),
    _chenyaofo("cifar10", 56, "187c023a", 0.9437),
    _chenyaofo("cifar100", 20, "23dac2f1", 0.6883),
    _chenyaofo("cifar100", 32, "84213ce6", 0.7016),
    _chenyaofo("cifar100", 44, "ffe32858", 0.7163),
    _chenyaofo("cifar100", 56, "f2eff4c8", 0.7263),
    _imgclsmob(
        "cifar10", 20, 597, "9b0024ac4c2f374cde2c5052e0d0344a75871cdb", 163
    ),
    _imgclsmob(
        "cifar10", 56, 452, "628c42a26fe347b84060136212e018df2bb35e0f", 163
    ),
    _imgclsmob(
        "cifar10", 110, 369, "4d6ca1fc02eaeed724f4f596011e391528536049", 163
    ),
]

WEIGHTS = {(row.name, row.arch): row for row in [*read_shipped(), *_OTHERS]}


def list_weights() -> list[dict[str, Any]]:
    """Returns the table of trained weights as a list of dicts.

    Each has `name` and `arch`, for `build_resnet(arch, weights=name)`, and
    `dataset`, `recipe`, `epochs`, `top1` (of this file), `top1_mean` and
    `seeds`, `normalization`, `size` in bytes, `digest`, `licence` and `where`.
    """
    return [asdict(row) for row in WEIGHTS.values()]


def find_weights(weights: str | Path, arch: str) -> Weights | None:
    """Returns the row of a name, or `None` for a file or a name on the Hub.

    `weights` are as in `build_resnet`. A name that has no weights for the net
    `arch` raises `InputError`.
    """
    names = dict.fromkeys(name for name, _ in WEIGHTS)
    text = spelled(str(weights), names)
    nets = [row.arch for row in WEIGHTS.values() if row.name == text]
    if arch in nets:
        return WEIGHTS[text, arch]
    if nets:
        raise InputError(
            f"weights={text!r} is not available for {arch}, only for "
            f"{', '.join(nets)}"
        )
    suffixes = (".keras", *FORMATS)
    if "://" in text and not text.startswith(HUB):
        raise InputError(
            f"weights={text!r}: download the file, and give its path"
        )
    if text.startswith(HUB) or Path(text).suffix in suffixes:
        return None
    if Path(text).is_file():
        raise InputError(
            f"weights={text!r}: the suffix must be one of {', '.join(suffixes)}"
        )
    if text and Path(text).is_dir():
        raise InputError(
            f"weights={text!r} is a folder: give a file in it, such as "
            "last.keras"
        )
    others = [f"{HUB}user/name", f"a file ({', '.join(suffixes)})"]
    raise unknown("weights", text, [*names, *others])
