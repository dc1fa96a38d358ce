"""The command that measures: `benchmark`."""

import sys

from keras_resnet_cifar import architectures
from keras_resnet_cifar.command_tools import data_options, import_keras
from keras_resnet_cifar.datasets import check_known
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.recipes import DEFAULT, get_recipe


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
    import_keras()
    from keras_resnet_cifar.data import load_dataset
    from keras_resnet_cifar.time_to import check_target, time_to

    check_target(args.time_to, args.split)
    held_out = recipe.validation or 5000
    data = load_dataset(
        name,
        validation=held_out if args.split == "validation" else 0,
        **data_options(args),
    )
    found = time_to(args.time_to, data, arch, recipe, args.split)
    _write_found(found, args.output)


def _write_found(found, path):
    from keras_resnet_cifar.files import write_json

    if path:
        write_json(path, found)
