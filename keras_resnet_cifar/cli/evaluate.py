"""The command `evaluate`."""

import argparse
import time
from functools import partial
from pathlib import Path

from keras_resnet_cifar.cli import options
from keras_resnet_cifar.cli.start import import_keras
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation.metrics import TEST_TIME_AUGMENTATIONS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `evaluate`."""
    models = "run directories or .keras files"
    which, splits = ("last", "best", "all"), ("test", "validation", "train")
    folder = "where to write (default: evaluation/ beside the model)"
    add = partial(options.add, parser)
    add("models", Path, models, nargs="+", metavar="RUN|MODEL")
    add("--checkpoint", which, "which one of a run", "last")
    add("--split", splits, "which split to evaluate", "test")
    add("--output-dir", Path, folder)
    tta = "test-time augmentation: flip averages the logits with the mirror's"
    add("--tta", TEST_TIME_AUGMENTATIONS, tta, "none")
    calibrate = "calibration error before and after temperature scaling"
    add("--calibrate", bool, calibrate)
    add("--mistakes", int, "how many confident mistakes to draw", 25)
    options.add_data_options(parser, "the run's")


def run(args: argparse.Namespace) -> None:
    """Evaluate checkpoints: accuracy, calibration, confusion, mistakes."""
    if not 1 <= args.mistakes <= 100:
        raise InputError(f"mistakes={args.mistakes}: give 1 to 100")
    if args.calibrate and args.tta != "none":
        raise InputError(
            "calibrate= does not go with tta=: evaluate once with each"
        )
    jobs: dict[Path, tuple[Path, dict]] = {}
    for model_or_run in args.models:
        for path in options.checkpoints(model_or_run, args.checkpoint):
            request, same = options.data_request(path, args)
            folder = _folder(path, args, same)
            if folder in jobs:
                raise InputError(
                    f"two models would write to {folder}: evaluate them one by "
                    "one, each with its own --output-dir"
                )
            jobs[folder] = path, request
    import_keras()
    from keras_resnet_cifar.data.load import load_dataset
    from keras_resnet_cifar.evaluation.evaluate import calibrate, report
    from keras_resnet_cifar.models.saving import load_model

    loaded = None
    for folder, (path, request) in jobs.items():
        if request != loaded:  # most often, all models share one dataset
            data, loaded = load_dataset(**request), request
        split = getattr(data, args.split)
        if split is None:
            raise InputError(
                f"the data for {path} has no validation split: use --split "
                "test or train"
            )
        model = load_model(path)
        start = time.perf_counter()
        result = report(
            model, split, data.class_names, folder, args.mistakes, args.tta
        )
        seconds = time.perf_counter() - start
        scores = options.scores(result.to_json())
        if args.tta != "none":
            scores = f"with --tta {args.tta} {scores}"
        print(
            f"{path}: {args.split} {scores} "
            f"({len(split):,} images, {seconds:.1f} s; {folder})"
        )
        if args.calibrate:
            values = calibrate(model, data.validation, split, folder)
            print(
                f"{path}: temperature {values['temperature']:.3f}, calibration "
                f"error {values['ece_before']:.4f} -> {values['ece_after']:.4f}"
            )


def _folder(path: Path, args: argparse.Namespace, same: bool) -> Path:
    """Returns where a report goes; its name says what is not as in the run."""
    dataset = [] if same else [Path(args.dataset).name]
    tta = [] if args.tta == "none" else [args.tta]
    name = "-".join([path.stem, *dataset, args.split, *tta])
    if args.output_dir:
        return args.output_dir / f"{path.parent.name}-{name}"
    return path.parent / "evaluation" / name
