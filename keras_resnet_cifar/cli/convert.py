"""The command `convert`."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from keras_resnet_cifar.cli import options
from keras_resnet_cifar.cli.start import import_keras
from keras_resnet_cifar.data.datasets import check_known
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.models import architectures
from keras_resnet_cifar.pytorch.files import FORMATS, check_suffix
from keras_resnet_cifar.pytorch.schemes import SCHEMES, get_scheme


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `convert`."""
    checkpoint = (
        f"a PyTorch file ({', '.join(FORMATS)}); with --to-torch a run "
        "directory or a .keras file"
    )
    output = "a new .keras file; with --to-torch a new PyTorch file"
    normalization = (
        "normalization that the net was trained with: imagenet, per_image or a "
        "dataset (default: the scheme's)"
    )
    schemes = "; ".join(f"{s.name} ({s.source})" for s in SCHEMES.values())
    add = partial(options.add, parser)
    add("checkpoint", Path, checkpoint, metavar="FILE")
    add("-o --output", Path, output, metavar="FILE", required=True)
    add("--arch", str, "the net (default: inferred from the tensors)")
    add("--normalization", str, normalization)
    to_torch = f"write a PyTorch file in one of these naming schemes: {schemes}"
    add("--to-torch", str, to_torch)
    add("--evaluate", bool, "evaluate the net on the test split of --dataset")
    options.add_data_options(parser, "none")


def run(args: argparse.Namespace) -> None:
    """Convert a PyTorch checkpoint to a .keras file, or back."""
    _check(args)
    names = options.class_names(args.dataset) if args.dataset else ()
    import_keras()
    from keras_resnet_cifar.data.load import load_dataset
    from keras_resnet_cifar.evaluation.evaluate import evaluate
    from keras_resnet_cifar.models.normalization import describe_normalization
    from keras_resnet_cifar.models.saving import (
        check_classifier,
        load_model,
        save_model,
    )
    from keras_resnet_cifar.models.torch_checkpoints import (
        load_torch_checkpoint,
        save_torch_checkpoint,
    )

    if args.to_torch:
        model = load_model(*options.checkpoints(args.checkpoint))
    else:
        model = load_torch_checkpoint(
            args.checkpoint, args.arch, args.normalization
        )
        if names:
            check_classifier(model, len(names))
            model.class_names = names
    if args.evaluate:
        data: Any = load_dataset(args.dataset, **options.data_options(args))
        result = evaluate(model, data.test, data.class_names)
    if args.to_torch:
        save_torch_checkpoint(model, args.output, args.to_torch)
    else:
        save_model(model, args.output)
    unnamed = "" if args.to_torch or names else " (--dataset names them)"
    print(
        f"wrote {args.output}: {model.name}, {model.output_shape[-1]} "
        f"classes{unnamed}, images {describe_normalization(model)}"
    )
    if args.evaluate:
        test = options.scores(result.to_json())
        print(f"test {test} ({len(data.test):,} images)")


def _check(args: argparse.Namespace) -> None:
    """Raises `InputError` for bad options before anything is loaded."""
    if args.to_torch:
        get_scheme(args.to_torch)
        check_suffix(args.output)
        if args.arch or args.normalization:
            raise InputError(
                "--to-torch writes the net as it is: omit --arch and "
                "--normalization"
            )
    elif args.output.suffix != ".keras":
        raise InputError(
            f"-o {args.output}: name a .keras file, or a scheme with --to-torch"
        )
    if args.output.exists():
        raise InputError(f"{args.output} exists: name another file with -o")
    if args.arch:
        architectures.resolve(args.arch)
    if args.evaluate and args.dataset is None:
        raise InputError("--evaluate needs a --dataset, e.g. cifar10")
    if (args.data_dir or args.source) and not args.evaluate:
        raise InputError("--data-dir and --source need --evaluate: omit them")
    if args.dataset is not None:
        check_known(args.dataset, args.source, args.data_dir)
