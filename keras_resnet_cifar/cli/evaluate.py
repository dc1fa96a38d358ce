"""The command `evaluate`."""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from keras_resnet_cifar.cli import options
from keras_resnet_cifar.cli.start import import_keras
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation.html_report import Page, write_report
from keras_resnet_cifar.evaluation.metrics import TEST_TIME_AUGMENTATIONS
from keras_resnet_cifar.files import check_replaceable, make_folder
from keras_resnet_cifar.training.run_directory import versions


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `evaluate`."""
    models = "run directories or .keras files"
    which, splits = ("last", "best", "all"), ("test", "validation", "train")
    folder = "folder of the results (default: evaluation/ next to the model)"
    add = partial(options.add, parser)
    add("models", Path, models, nargs="+", metavar="RUN|MODEL")
    add("--checkpoint", which, "which model of a run to evaluate", "last")
    add("--split", splits, "split to evaluate", "test")
    add("--output-dir", Path, folder)
    tta = "test-time augmentation; flip averages logits with the mirror image's"
    add("--tta", TEST_TIME_AUGMENTATIONS, tta, "none")
    calibrate = "fit a temperature on validation images; report calibration"
    add("--calibrate", bool, calibrate)
    corruptions = (
        "measure the accuracy under the corruptions of CIFAR-10-C, made from "
        "the images or read from the published files in FOLDER"
    )
    made: dict = {"nargs": "?", "const": True, "metavar": "FOLDER"}
    add("--corruptions", Path, corruptions, **made)
    few = "images for each corruption and severity"
    add("--corruption-images", int, few, 1000)
    page = "write all results and pictures to one HTML file"
    add("--report", Path, page, metavar="FILE.html")
    add("--mistakes", int, "most confident mistakes to draw, 1 to 100", 25)
    options.add_data_options(parser, "the run's")
    options.add_allow_changed_data(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluate models: accuracy, calibration, confusion, mistakes."""
    if not 1 <= args.mistakes <= 100:
        raise InputError(f"mistakes={args.mistakes}: give 1 to 100")
    if args.corruption_images < 1:
        given = args.corruption_images
        raise InputError(f"corruption_images={given}: give 1 or more")
    if "corruption_images" in options.given(args) and not args.corruptions:
        raise InputError("corruption_images= needs corruptions=True")
    if args.report:
        check_replaceable(args.report)
        if args.report.suffix not in (".html", ".htm"):
            raise InputError(f"report={args.report}: name a .html file")
        if not args.report.parent.is_dir():
            raise InputError(
                f"report={args.report}: its folder does not exist; create it"
            )
    jobs: dict[Path, tuple[Path, dict]] = {}
    for model_or_run in args.models:
        for path in options.checkpoints(model_or_run, args.checkpoint):
            request, same = options.data_request(path, args)
            folder = _folder(path, args, same)
            if folder in jobs:
                raise InputError(
                    f"two models would write to {folder}: evaluate them "
                    "separately, each with its own --output-dir"
                )
            jobs[folder] = path, request
    import_keras()
    from keras_resnet_cifar.evaluation.corruptions import read_corrupted

    files = args.corruptions
    if isinstance(files, Path):
        files = read_corrupted(files)
    pages = []
    models = options.loaded(jobs.values(), args.allow_changed_data)
    for (folder, (path, _)), (model, data, config, changed) in zip(
        jobs.items(), models, strict=True
    ):
        if getattr(data, args.split) is None:
            raise InputError(
                f"the data for {path} has no {args.split} split: use --split "
                "test or train"
            )
        if args.calibrate and data.validation is None:
            raise InputError(
                f"the data for {path} has no validation split to fit a "
                "temperature on: train with --validation 5000"
            )
        taken = config.get("request", {}).get("validation")
        validated = args.calibrate or args.split == "validation"
        if changed and validated and taken and isinstance(taken, int):
            raise InputError(
                f"validation={taken} now chooses other images of {data.name}, "
                "which may include training images: evaluate the test split, "
                "or train with a fraction such as 0.1"
            )
        page = _evaluate(path, model, data, changed, folder, args, files)
        page.config = config
        pages.append(page)
        if args.report:
            write_report(args.report, pages, versions())


def _evaluate(
    path: Path,
    model: Any,
    data: Any,
    changed: str,
    folder: Path,
    args: argparse.Namespace,
    files: Any,
) -> Any:
    """Evaluates one model, prints the results, and returns its `Page`."""
    from keras_resnet_cifar.evaluation import evaluate
    from keras_resnet_cifar.models.saving import check_classifier

    names, split = data.class_names, getattr(data, args.split)
    check_classifier(model, len(names), split.images.shape[1:])
    make_folder(folder)
    start = time.perf_counter()
    logits = evaluate.split_logits(model, split, names, args.tta)
    result = evaluate.report(logits, split, names, folder, args.mistakes)
    seconds = time.perf_counter() - start
    how = "" if args.tta == "none" else f" with --tta {args.tta}"
    where = f"{args.split} split of {data.name}{changed}{how}"
    scores = options.scores(result.to_json())
    page = Page(str(path), where, folder, result.to_json())
    print(
        f"{path}: {args.split}{how} {scores} "
        f"({len(split):,} images{changed}, {seconds:.1f} s; {folder})"
    )
    if args.calibrate:
        held_out = evaluate.split_logits(
            model, data.validation, names, args.tta
        )
        page.calibration = values = evaluate.calibrate(
            (held_out, data.validation.labels), (logits, split.labels), folder
        )
        print(
            f"{path}: temperature {values['temperature']:.3f}, calibration "
            f"error {values['ece_before']:.4f} -> {values['ece_after']:.4f}"
        )
    if files:
        print(f"{'accuracy in % at severity':25}     1     2     3     4     5")
        page.corruptions = values = evaluate.evaluate_corruptions(
            *(model, split, names, folder, None if files is True else files),
            *(args.corruption_images, args.tta, _print_accuracies),
        )
        print(
            f"{path}: mean corruption error{how} "
            f"{values['mean_corruption_error']:.2%} over the first 15 "
            f"({values['images']:,} images of each corruption and severity)"
        )
    return page


def _print_accuracies(name: str, accuracies: Sequence[float]) -> None:
    print(f"{name:25}" + "".join(f"{100 * x:6.1f}" for x in accuracies))


def _folder(path: Path, args: argparse.Namespace, same: bool) -> Path:
    """Returns the folder of a report, named after what differs from the run."""
    dataset = [] if same else [Path(args.dataset).name]
    tta = [] if args.tta == "none" else [args.tta]
    name = "-".join([path.stem, *dataset, args.split, *tta])
    if args.output_dir:
        return args.output_dir / f"{path.parent.name}-{name}"
    return path.parent / "evaluation" / name
