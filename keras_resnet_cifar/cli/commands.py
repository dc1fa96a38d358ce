"""What the commands do that use models: read, call the package, print.

Keras is imported inside the commands, after all that can be checked without.
"""

import dataclasses
import json
import time
from pathlib import Path

from keras_resnet_cifar.cli.options import data_options, told
from keras_resnet_cifar.cli.start import import_keras
from keras_resnet_cifar.data.datasets import DATASETS, check_known
from keras_resnet_cifar.data.folders import class_names
from keras_resnet_cifar.errors import InputError, unknown
from keras_resnet_cifar.export.export import export_model
from keras_resnet_cifar.finetuning.phases import newest_run
from keras_resnet_cifar.models import architectures
from keras_resnet_cifar.pytorch.files import check_suffix
from keras_resnet_cifar.pytorch.schemes import get_scheme
from keras_resnet_cifar.training.recipes import RECIPES
from keras_resnet_cifar.training.run_directory import find_run

CHECKPOINTS = ("last", "best", "all")


def evaluate(args):
    """Evaluate checkpoints: accuracy, calibration, confusion, mistakes."""
    if not 1 <= args.mistakes <= 100:
        raise InputError(f"--mistakes {args.mistakes}: give 1 to 100")
    checkpoints = [
        path
        for model in args.models
        for path in _checkpoints(model, args.checkpoint)
    ]
    jobs = [(path, *_job(path, args)) for path in checkpoints]
    folders = [folder for _, _, folder in jobs]
    twice = [folder for folder in folders if folders.count(folder) > 1]
    if twice:
        raise InputError(
            f"two models would write to {twice[0]}: evaluate them one by one, "
            "each with its own --output-dir"
        )
    import_keras()
    from keras_resnet_cifar.evaluation.evaluate import report
    from keras_resnet_cifar.models.saving import load_model

    loaded = {}
    for path, request, folder in jobs:
        key = json.dumps(request, sort_keys=True)
        if key not in loaded:
            loaded = {key: _load_split(request, args.split)}
        split, class_names = loaded[key]
        model = load_model(path)
        begin = time.perf_counter()
        result = report(model, split, class_names, folder, args.mistakes)
        seconds = time.perf_counter() - begin
        print(
            f"{path}: {args.split} {told(result.to_json())} "
            f"({len(split):,} images, {seconds:.1f} s; {folder})"
        )


def _checkpoints(path, which):
    """The `.keras` files that a path on the command line means."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise InputError(
            f"no run or model at {path}: name a run directory or a .keras file"
        )
    run = newest_run(path)
    wanted = {
        "last": [run.last],
        "best": [run.best],
        "all": [*run.checkpoints(), run.best, run.last],
    }[which]
    found = [file for file in wanted if file.is_file()]
    if not found:
        raise InputError(
            f"{path} has no {wanted[0].name}: name a run that has finished an "
            "epoch, or a .keras file"
        )
    return found


def _job(path, args):
    """What a checkpoint is evaluated on, and where the report goes.

    Returns:
        The arguments of `load_dataset`, its run's and then those given, and
        the folder.
    """
    run = find_run(path)
    request = run.read_config()["request"] if run else {}
    parts = [path.stem, args.split]
    if args.dataset and args.dataset != request.get("name"):
        request = {"name": args.dataset}
        parts.insert(1, Path(args.dataset).name)
    request |= data_options(args)
    if "name" not in request:
        raise _no_dataset(path)
    check_known(request["name"], request.get("source"))
    if args.output_dir:
        return request, args.output_dir / "-".join([path.parent.name, *parts])
    return request, path.parent / "evaluation" / "-".join(parts)


def _no_dataset(path):
    return InputError(
        f"{path} lies in no run directory: name its --dataset "
        f"({', '.join(DATASETS)})"
    )


def _load_split(request, name):
    from keras_resnet_cifar.data.load import load_dataset

    data = load_dataset(**request)
    split = getattr(data, name)
    if split is None:
        raise InputError(
            "the run held out no validation split: evaluate --split test or "
            "train"
        )
    return split, data.class_names


def predict(args):
    """Predict the classes of image files."""
    path = args.model
    if path.is_dir():
        path = _checkpoints(path, "last")[0]
    names = _class_names(args.dataset, find_run(path))
    import_keras()
    from keras_resnet_cifar.evaluation.predict import predict_files
    from keras_resnet_cifar.models.saving import load_model

    model = load_model(path)
    rows = predict_files(model, args.images, names, args.top)
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        classes = ", ".join(
            f"{found['class']} {found['probability']:.1%}"
            for found in row["classes"]
        )
        print(f"{row['image']}: {classes}")


def _class_names(dataset, run):
    """The names of the classes of a dataset, else of a run, if known."""
    held = run.read_config()["dataset"] if run and not dataset else {}
    name = dataset or held.get("name")
    if name is None or "class_names" in held:
        return held.get("class_names")
    check_known(name)
    if name in DATASETS:
        return DATASETS[name].class_names
    return class_names(name)


def convert(args):
    """Convert a PyTorch checkpoint to a .keras file, or back."""
    _check_conversion(args)
    import_keras()
    from keras_resnet_cifar.evaluation.evaluate import evaluate as evaluation_of
    from keras_resnet_cifar.models.normalization import describe_normalization
    from keras_resnet_cifar.models.saving import load_model, save_model
    from keras_resnet_cifar.pytorch.checkpoints import (
        load_torch_checkpoint,
        save_torch_checkpoint,
    )

    if args.to_torch:
        model = load_model(_checkpoints(args.checkpoint, "last")[0])
    else:
        model = load_torch_checkpoint(
            args.checkpoint, args.arch, args.normalization
        )
    if args.evaluate:
        request = {"name": args.dataset} | data_options(args)
        split, class_names = _load_split(request, "test")
        result = evaluation_of(model, split, class_names)
    if args.to_torch:
        save_torch_checkpoint(model, args.output, args.to_torch)
    else:
        save_model(model, args.output)
    print(
        f"wrote {args.output}: {model.name}, {model.output_shape[-1]} "
        f"classes, images {describe_normalization(model)}"
    )
    if args.evaluate:
        print(f"test {told(result.to_json())} ({len(split):,} images)")


def _check_conversion(args):
    """Raises `InputError` for what is wrong before anything is loaded."""
    if args.to_torch:
        get_scheme(args.to_torch)
        check_suffix(args.output)
        if args.arch or args.normalization:
            raise InputError(
                "--to-torch writes the net that is there: leave --arch and "
                "--normalization out"
            )
    elif args.output.suffix != ".keras":
        raise InputError(
            f"-o {args.output}: name a .keras file, or a scheme with --to-torch"
        )
    if args.output.exists():
        raise InputError(
            f"{args.output} is there already: name another file with -o"
        )
    if args.arch:
        architectures.parse(args.arch)
    if args.evaluate and args.dataset is None:
        raise InputError("--evaluate needs a --dataset, e.g. cifar10")
    if args.dataset is not None and args.dataset not in DATASETS:
        raise unknown("dataset", args.dataset, DATASETS)


def export(args):
    """Export a model for serving, verified on the test split."""
    (path,) = _checkpoints(args.model, args.checkpoint)
    if not args.dataset and not find_run(path):
        raise _no_dataset(path)
    request = data_options(args)
    if args.dataset:
        check_known(args.dataset, args.source)
        request["name"] = args.dataset
    import_keras()
    found = export_model(
        path,
        args.out,
        args.format,
        int8=args.int8,
        data=request,
        images=args.images,
        tolerance=args.tolerance,
    )
    check = found.verification
    print(
        f"wrote {found.path}: {args.format}{' int8' * args.int8}, "
        f"{found.size / 1e6:.2f} MB\n"
        f"verified on {check.images:,} {found.images}: {check.alike:,} have "
        f"the class of the Keras model, probabilities within "
        f"{check.difference:.1e}\n"
        f"top-1 {found.top1:.2%}, of the Keras model {found.keras_top1:.2%}; "
        f"{check.images_per_second:,.0f} images/s on the CPU"
    )


def list_tables(args):
    """List architectures, recipes and datasets."""
    recipes = [dataclasses.asdict(recipe) for recipe in RECIPES.values()]
    sets = [
        {
            "name": info.name,
            "classes": info.num_classes,
            "summary": info.summary,
        }
        for info in DATASETS.values()
    ]
    nets = architectures.list_architectures()
    if args.json:
        tables = {"architectures": nets, "recipes": recipes, "datasets": sets}
        print(json.dumps(tables, indent=2))
        return
    print(f"architectures, by the rule {architectures.RULE}:")
    for row in nets:
        print(
            f"  {row['name']:<30}{row['depth']:>5}  {row['block']:<11}"
            f"{row['parameters']:>11,}  {row['source']}"
        )
    print("recipes:")
    for row in recipes:
        print(
            f"  {row['name']:<24}{row['arch']} on {row['dataset']}, "
            f"{row['epochs']} epochs; {row['expected']}\n"
            f"  {'':<24}{row['source']}"
        )
    print("datasets:")
    for row in sets:
        print(f"  {row['name']:<24}{row['classes']} classes: {row['summary']}")
