"""Put the weights of finished runs into the package: see docs/weights.md."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from keras_resnet_cifar.cli import options
from keras_resnet_cifar.cli.main import run as run_command
from keras_resnet_cifar.cli.main import script_parser
from keras_resnet_cifar.cli.start import import_keras


def run(args: argparse.Namespace) -> None:
    """Ship the first run's weights; runs with other seeds add to the mean."""
    import_keras()
    from benchmarks.shipping import ship

    row = ship(args.runs, args.name, args.data_dir, replace=args.replace)
    for field, value in vars(row).items():
        print(f"{field}: {value}")


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = script_parser(run, "scripts/ship_weights.py")
    parser.set_defaults(command="ship_weights")
    runs = "finished runs with different seeds; the first one's weights ship"
    where = "folder of the dataset (default: the one used in training)"
    options.add(parser, "runs", Path, runs, nargs="+", metavar="RUN")
    name = "name of the weights, as in weights=NAME"
    options.add(parser, "--name", str, name, required=True)
    options.add(parser, "--data-dir", Path, where)
    options.add(parser, "--replace", bool, "replace weights of this name")
    return run_command(parser)


if __name__ == "__main__":
    sys.exit(main())
