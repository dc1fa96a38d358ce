"""The command `export`."""

import argparse
from functools import partial
from pathlib import Path

from keras_resnet_cifar.cli import options
from keras_resnet_cifar.cli.start import import_keras
from keras_resnet_cifar.export.verify import FORMATS, TOLERANCE


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `export`."""
    out = (
        "folder of the model, in which the next free version is created, or "
        "folder of a version, e.g. saved_models/resnet20/1"
    )
    int8 = "quantize LiteRT to int8, calibrated on training images"
    which = ("last", "best")
    images = "number of test images to verify on (default: all)"
    off = "largest allowed difference of a probability from the Keras model's"
    add = partial(options.add, parser)
    add("model", Path, "a run directory or a .keras file", metavar="RUN|MODEL")
    add("--out", Path, out, required=True)
    add("--format", tuple(FORMATS), "export format", "saved_model")
    add("--int8", bool, int8)
    calibrated = "divide logits by a temperature fitted on the validation split"
    add("--calibrated", bool, calibrated)
    add("--checkpoint", which, "which model of a run to export", "last")
    add("--images", int, images)
    add("--tolerance", float, off, TOLERANCE)
    sizes = "batch sizes to measure the latency of, such as 1,8,64"
    add("--batch-sizes", str, sizes, type=batch_sizes)
    options.add_data_options(parser, "the run's")
    options.add_allow_changed_data(parser)


def batch_sizes(text: str) -> list[int]:
    """Parses `1,8,64`."""
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text}: give sizes such as 1,8,64"
        ) from None


def run(args: argparse.Namespace) -> None:
    """Export a model for serving, verified on the test split."""
    (path,) = options.checkpoints(args.model, args.checkpoint)
    request, _ = options.data_request(path, args)
    import_keras()
    from keras_resnet_cifar.export.export import export_model

    result = export_model(
        path,
        args.out,
        args.format,
        int8=args.int8,
        data=request,
        images=args.images,
        tolerance=args.tolerance,
        calibrated=args.calibrated,
        batch_sizes=args.batch_sizes or (),
        allow_changed_data=args.allow_changed_data,
    )
    # The request names a dataset, so there are labels.
    assert result.top1 is not None
    assert result.keras_top1 is not None
    print(
        f"wrote {result.path}: {args.format}{' int8' * args.int8}, "
        f"{result.size / 1e6:.2f} MB\n"
        f"verified on {result.count:,} {result.images}: {result.same_class:,} "
        "have the class of the Keras model, probabilities within "
        f"{result.difference:.1e}\n"
        f"top-1 {options.with_interval(result.top1, result.count)}; "
        "the Keras model: top-1 "
        f"{options.with_interval(result.keras_top1, result.count)}; "
        f"{result.images_per_second:,.0f} images/s on the CPU"
    )
    if result.files:
        print(
            f"serving_bytes: {result.files_same_class} of {result.files} image "
            "files have the class of the Keras model"
        )
    for size, exported, keras in zip(
        args.batch_sizes or (),
        result.latency_ms,
        result.keras_latency_ms,
        strict=True,
    ):
        print(
            f"batch of {size}: {exported:.2f} ms, {1e3 * size / exported:,.0f} "
            f"images/s; Keras: {keras:.2f} ms, {1e3 * size / keras:,.0f}"
        )
