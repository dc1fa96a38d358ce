"""What each command does: read, call the package, print.

Keras is imported inside the commands, after all that can be checked without.
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

from keras_resnet_cifar import architectures
from keras_resnet_cifar.backbones import BACKBONES
from keras_resnet_cifar.backups import Interval
from keras_resnet_cifar.datasets import DATASETS, check_known
from keras_resnet_cifar.errors import InputError, Stopped, unknown
from keras_resnet_cifar.export import export_model
from keras_resnet_cifar.image_folders import class_names
from keras_resnet_cifar.phases import PhasedDirectory
from keras_resnet_cifar.recipes import (
    DEFAULT,
    FINETUNING,
    OPTIONS,
    RECIPES,
    Recipe,
    checked_seed,
    get_recipe,
)
from keras_resnet_cifar.runs import RunDirectory, find_run
from keras_resnet_cifar.torch_files import check_suffix
from keras_resnet_cifar.torch_schemes import get_scheme

CHECKPOINTS = ("last", "best", "all")


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What `train` will do, before anything heavy is imported.

    Attributes:
        recipe: The `Recipe`, options applied.
        request: Arguments of `load_dataset`.
        seed: Of everything.
        directory: The run directory.
        arch: Name of the net to build; `None` to resume `directory`.
    """

    recipe: Recipe
    request: dict
    seed: int
    directory: Path
    arch: str | None = None


def train(args):
    """Train a net by a recipe and evaluate it on the test split."""
    plan = _resumed_plan(args) if args.resume else _new_plan(args)
    Interval.parse(args.backup_every)
    _import_keras()
    from keras_resnet_cifar.data import load_dataset
    from keras_resnet_cifar.hardware import JAX_DETERMINISTIC
    from keras_resnet_cifar.training import train as run_training

    if args.deterministic:  # JAX looks when it first computes
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} {JAX_DETERMINISTIC}"
    data = load_dataset(**plan.request)
    model = _model(plan, data)
    print(
        f"{model.name} on {data.name} ({len(data.train):,} train, "
        f"{len(data.validation or ()):,} validation, {len(data.test):,} test "
        f"images; {'verified' if data.verified else 'NOT verified'}; "
        f"{data.source})\nrecipe {plan.recipe.name}, "
        f"{plan.recipe.epochs} epochs, run directory {plan.directory}"
    )
    try:
        run = run_training(
            model,
            data,
            plan.recipe,
            plan.directory,
            seed=plan.seed,
            resume=plan.arch is None,
            backup_every=args.backup_every,
            deterministic=args.deterministic,
            tensorboard=args.tensorboard,
            verbose=not args.quiet,
        )
    except Stopped as stopped:
        stopped.args = (
            "; to go on: python -m keras_resnet_cifar train --resume "
            f"{plan.directory}",
        )
        raise
    for name, found in run.metrics.items():
        print(f"{name} (epoch {found['epoch']}): {_told(found['test'])}")
    print(f"wrote {run.directory}: {', '.join(_files(run.directory))}")


def _model(plan, data):
    """The net to train: a new one, or the structure of the resumed one."""
    import keras

    from keras_resnet_cifar.evaluation import load_model
    from keras_resnet_cifar.models import build_resnet

    if plan.arch is None:
        return load_model(RunDirectory(plan.directory).last)
    keras.utils.set_random_seed(plan.seed)
    return build_resnet(
        plan.arch,
        num_classes=data.num_classes,
        input_shape=data.train.images.shape[1:],
        normalization=plan.recipe.normalization or _statistics(data),
    )


def _statistics(data):
    """Whose channel statistics normalise; one's own images take ImageNet's."""
    return data.name if data.name in DATASETS else "imagenet"


def _new_plan(args):
    recipe = get_recipe(args.recipe or DEFAULT, **_changes(args))
    arch = recipe.arch if args.arch is None else args.arch
    arch = architectures.parse(arch).name
    name = recipe.dataset if args.recipe else "shapes"
    name = name if args.dataset is None else args.dataset
    check_known(name, args.source)
    stem = f"{arch}-{Path(name).name}-{recipe.name}"
    directory = args.output_dir or _unused(stem)
    RunDirectory(directory).check_unused()
    seed = checked_seed(args.seed or 0)
    request = {"name": name, "validation": recipe.validation, "seed": seed}
    return _Plan(recipe, request | _data_options(args), seed, directory, arch)


def _resumed_plan(args):
    config = RunDirectory(args.resume).read_config()
    try:
        recipe = get_recipe(Recipe(**config["recipe"]))
    except (TypeError, InputError) as error:
        raise InputError(
            f"cannot read the recipe of {args.resume}: {error}; restore its "
            "config.json or start a new run"
        ) from error
    arch = args.arch and architectures.parse(args.arch).name
    asked_and_held = {
        "output_dir": (args.output_dir, args.resume),
        "arch": (arch, config["arch"]),
        "recipe": (args.recipe, recipe.name),
        "dataset": (args.dataset, config["dataset"]["name"]),
        "seed": (args.seed, config["seed"]),
    } | {
        name: (value, getattr(recipe, name))
        for name, value in _changes(args).items()
        if name != "epochs"  # whether it fits depends on how far the run got
    }
    for name, (asked, held) in asked_and_held.items():
        if asked not in (None, held):
            raise InputError(
                f"cannot resume with another config: {name} was {held}, now "
                f"{asked}; leave the option out, or start a new run"
            )
    recipe = get_recipe(recipe, epochs=args.epochs)
    request = config["request"] | _data_options(args)
    return _Plan(recipe, request, config["seed"], args.resume)


def _data_options(args):
    """The arguments of `load_dataset` that were given as options."""
    names = ("data_dir", "source", "allow_unverified")
    given = {name: getattr(args, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _changes(args):
    """The recipe fields that were given as options."""
    given = {field.name: getattr(args, field.name) for field in OPTIONS}
    return {name: value for name, value in given.items() if value is not None}


def _unused(stem):
    """The first folder runs/STEM, runs/STEM-2, ... that is not there."""
    number = 1
    while True:
        path = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        if not path.exists():
            return path
        number += 1


def finetune(args):
    """Fine-tune a pretrained net: its new head, then all that is not frozen."""
    plan, request, directory = (
        _resumed_finetuning(args) if args.resume else _new_finetuning(args)
    )
    _import_keras()
    import keras

    from keras_resnet_cifar import finetuning
    from keras_resnet_cifar.data import load_dataset
    from keras_resnet_cifar.evaluation import load_model

    data = load_dataset(**request)
    if args.resume:
        model = load_model(directory.newest().last)
    else:
        keras.utils.set_random_seed(plan["seed"])
        model = finetuning.build_finetuned(
            args.backbone,
            data.num_classes,
            weights=args.weights,
            image_size=args.image_size,
            input_shape=data.train.images.shape[1:],
            train_norm=plan["train_norm"],
        )
    print(
        f"{model.name} on {data.name} ({len(data.train):,} train, "
        f"{len(data.validation or ()):,} validation, {len(data.test):,} test "
        f"images; {'verified' if data.verified else 'NOT verified'}; "
        f"{data.source})\nrecipe {plan['recipe'].name}, "
        f"{plan['head_epochs']} + {plan['recipe'].epochs} epochs, run "
        f"directory {directory.path}"
    )
    try:
        run = finetuning.finetune(
            model,
            data,
            output_dir=directory.path,
            resume=bool(args.resume),
            verbose=not args.quiet,
            **plan,
        )
    except KeyboardInterrupt:
        if not directory.begun():
            raise
        raise KeyboardInterrupt(
            "; to go on: python -m keras_resnet_cifar finetune --resume "
            f"{directory.path}"
        ) from None
    for name, found in run.metrics.items():
        print(f"{name} (epoch {found['epoch']}): {_told(found['test'])}")
    print(f"wrote {run.directory}: {', '.join(_files(run.directory))}")


def _new_finetuning(args):
    """Arguments of `finetune` and `load_dataset`, and the folder."""
    if args.backbone is None:
        raise InputError(
            f"which --backbone? {', '.join(BACKBONES)}, or a .keras file"
        )
    if args.backbone not in BACKBONES and not args.backbone.endswith(".keras"):
        raise unknown("backbone", args.backbone, [*BACKBONES, "a .keras file"])
    recipe = get_recipe(args.recipe or FINETUNING, **_changes(args))
    name = recipe.dataset if args.dataset is None else args.dataset
    check_known(name, args.source)
    stem = f"{Path(args.backbone).stem}-{Path(name).name}-{recipe.name}"
    directory = PhasedDirectory(args.output_dir or _unused(stem))
    directory.check_unused()
    seed = checked_seed(args.seed or 0)
    plan = {
        "recipe": recipe,
        "freeze": args.freeze or "none",
        "head_epochs": 2 if args.head_epochs is None else args.head_epochs,
        "head_learning_rate": args.head_learning_rate,
        "train_norm": args.train_norm or args.weights == "none",
        "cache_features": args.cache_features,
        "seed": seed,
    }
    request = {"name": name, "validation": recipe.validation, "seed": seed}
    return plan, request | _data_options(args), directory


def _resumed_finetuning(args):
    """As `_new_finetuning`, of a run that has begun."""
    directory = PhasedDirectory(args.resume)
    plan = directory.read_plan()
    options = ("backbone", "recipe", "dataset", "output_dir", "seed", "freeze")
    options += ("head_epochs", "head_learning_rate", *_changes(args))
    given = [name for name in options if getattr(args, name) is not None]
    if given:
        raise InputError(
            f"--resume goes on as the run began: leave --"
            f"{given[0].replace('_', '-')} out, or start a new run"
        )
    request = directory.newest().read_config()["request"]
    return plan, request | _data_options(args), directory


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
    _import_keras()
    from keras_resnet_cifar.evaluation import load_model, report

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
            f"{path}: {args.split} {_told(result.to_json())} "
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
    run = RunDirectory(path)
    found = {
        "last": [run.last],
        "best": [run.best],
        "all": [*run.checkpoints(), run.best, run.last],
    }[which]
    missing = [file for file in found if not file.is_file()]
    if missing:
        raise InputError(
            f"{path} has no {missing[0].name}: name a finished run, or a "
            ".keras file"
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
    request |= _data_options(args)
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
    from keras_resnet_cifar.data import load_dataset

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
    _import_keras()
    from keras_resnet_cifar.evaluation import load_model
    from keras_resnet_cifar.prediction import predict_files

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
    _import_keras()
    from keras_resnet_cifar.checkpoints import save_model
    from keras_resnet_cifar.evaluation import evaluate as evaluation_of
    from keras_resnet_cifar.evaluation import load_model
    from keras_resnet_cifar.normalization import told_normalization
    from keras_resnet_cifar.torch_checkpoints import (
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
        request = {"name": args.dataset} | _data_options(args)
        split, class_names = _load_split(request, "test")
        result = evaluation_of(model, split, class_names)
    if args.to_torch:
        save_torch_checkpoint(model, args.output, args.to_torch)
    else:
        save_model(model, args.output)
    print(
        f"wrote {args.output}: {model.name}, {model.output_shape[-1]} "
        f"classes, images {told_normalization(model)}"
    )
    if args.evaluate:
        print(f"test {_told(result.to_json())} ({len(split):,} images)")


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
    request = _data_options(args)
    if args.dataset:
        check_known(args.dataset, args.source)
        request["name"] = args.dataset
    _import_keras()
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


def benchmark(args):
    """Time training beside PyTorch and the machine's limit, in turns."""
    from keras_resnet_cifar import benchmark_table
    from keras_resnet_cifar.benchmark import benchmark as measure

    _check_benchmark(args)
    if args.time_to is not None:
        return _time_to(args)
    if args.show:
        found = benchmark_table.read(args.show)
    else:
        found = measure(
            args.arch or "resnet20",
            args.batch_size or 128,
            args.precision or "auto",
            args.steps,
            args.rounds,
            args.contenders and args.contenders.split(","),
            dataloader=args.dataloader,
            quick=args.quick,
            tell=lambda text: print(text, file=sys.stderr, flush=True),
        )
    as_markdown = benchmark_table.markdown_of
    print((as_markdown if args.markdown else benchmark_table.text_of)(found))
    _write_found(found, args.output)


def _check_benchmark(args):
    """Raises `InputError` for options that go with others only."""
    kinds = {
        "with": "steps rounds contenders dataloader quick show markdown",
        "without": "recipe epochs dataset data_dir source",
    }
    word = "without" if args.time_to is None else "with"
    for name in kinds[word].split():
        if getattr(args, name):
            raise InputError(
                f"--{name.replace('_', '-')} does not go {word} --time-to: "
                "leave it out"
            )
    if args.output and not args.output.parent.is_dir():
        raise InputError(
            f"cannot write {args.output}: there is no folder "
            f"{args.output.parent}; make it first"
        )


def _time_to(args):
    """The part of `benchmark` that trains on the real data."""
    recipe = get_recipe(
        args.recipe or DEFAULT,
        batch_size=args.batch_size,
        precision=args.precision,
        epochs=args.epochs,
    )
    arch = architectures.parse(args.arch or recipe.arch).name
    name = args.dataset or recipe.dataset
    check_known(name, args.source)
    _import_keras()
    from keras_resnet_cifar.data import load_dataset
    from keras_resnet_cifar.time_to import check_target, time_to

    check_target(args.time_to, args.split)
    held_out = recipe.validation or 5000
    data = load_dataset(
        name,
        validation=held_out if args.split == "validation" else 0,
        **_data_options(args),
    )
    found = time_to(args.time_to, data, arch, recipe, args.split)
    _write_found(found, args.output)


def _write_found(found, path):
    from keras_resnet_cifar.files import write_json

    if path:
        write_json(path, found)


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


def _told(test):
    return (
        f"top-1 {test['top1']:.2%}, top-5 {test['top5']:.2%}, "
        f"loss {test['loss']:.4f}, calibration error {test['ece']:.4f}"
    )


def _files(directory):
    return sorted(path.name for path in directory.iterdir())


def _import_keras():
    """Imports Keras, ready to compute, without notices of C++ on stderr."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with _silent_stderr():
            import keras  # noqa: F401
    except Exception as error:  # each backend fails in its own way
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"Keras cannot start on the backend "
            f"{os.environ.get('KERAS_BACKEND', 'tensorflow')}: {reason}; set "
            "KERAS_BACKEND to tensorflow, jax or torch, whichever is installed"
        ) from error
    from keras_resnet_cifar.hardware import cache_compilations

    cache_compilations()


@contextlib.contextmanager
def _silent_stderr():
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
