"""The command line: its options, and what an error becomes.

What the commands do is in `commands.py`, `training_commands.py` and
`benchmark_command.py`. No heavy module is imported here, so that help, and
errors that need no Keras, come at once.
"""

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path

from keras_resnet_cifar.cli import commands, training_commands
from keras_resnet_cifar.data.datasets import DATASETS, SOURCES
from keras_resnet_cifar.errors import (
    Diverged,
    ExportFailed,
    InputError,
    one_line,
)
from keras_resnet_cifar.export.export import FORMATS as EXPORT_FORMATS
from keras_resnet_cifar.export.verify import TOLERANCE
from keras_resnet_cifar.finetuning.backbones import BACKBONES, FREEZE
from keras_resnet_cifar.models import architectures
from keras_resnet_cifar.pytorch.files import FORMATS
from keras_resnet_cifar.pytorch.schemes import SCHEMES
from keras_resnet_cifar.training.backups import DEFAULT_INTERVAL
from keras_resnet_cifar.training.recipes import (
    DEFAULT,
    FINETUNING,
    OPTIONS,
    RECIPES,
)

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_DIVERGED, EXIT_SIGNAL = 1, 2, 3, 128


def main(arguments=None):
    """Runs a command; returns the exit code."""
    try:
        args = build_parser().parse_args(arguments)
        args.run(args)
        sys.stdout.flush()  # to see here what a full disk refuses
    except InputError as error:
        return _fail(error, EXIT_BAD_INPUT)
    except ExportFailed as error:
        return _fail(error, EXIT_FAILED)
    except Diverged as error:
        return _fail(error, EXIT_DIVERGED)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        _discard_output()
    except OSError as error:
        _discard_output()
        told = f"{one_line(error)}; check permissions, and space for the output"
        return _fail(told, EXIT_BAD_INPUT)
    except KeyboardInterrupt as interrupt:
        print(f"interrupted{interrupt}", file=sys.stderr)
        return EXIT_SIGNAL + getattr(interrupt, "number", signal.SIGINT)
    return 0


def _discard_output():
    """Keeps the interpreter from writing again what was refused."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error, code):
    print(f"error: {error}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, without the usage."""

    def error(self, message):
        raise InputError(f"{message} (see {self.prog} --help)")


def build_parser():
    """Returns the parser of all commands; `args.run(args)` runs one."""
    parser = _Parser(
        prog="keras_resnet_cifar",
        description="CIFAR ResNets in Keras 3.",
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (run, add_options) in _COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=run.__doc__.split("\n")[0],
            description=run.__doc__,
            allow_abbrev=False,
        )
        subparser.set_defaults(run=run)
        add_options(subparser)
    return parser


def _train_options(parser):
    parser.add_argument(
        "--arch",
        help="a name that the list command shows, or by the rule "
        f"{architectures.RULE} (default: the recipe's)",
    )
    parser.add_argument(
        "--recipe", help=f"{', '.join(RECIPES)} (default: {DEFAULT})"
    )
    _data_options(parser, "the recipe's if one is named, else shapes")
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="where the run goes (default: a new folder under runs/)",
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with the run in this folder from its newest backup",
    )
    parser.add_argument(
        "--tensorboard", action="store_true", help="write its logs as well"
    )
    _run_options(parser)


def _run_options(parser):
    """Those of all that trains."""
    parser.add_argument(
        "--backup-every",
        default=DEFAULT_INTERVAL,
        metavar="N|TIME",
        help="epochs between backups, or a time such as 30s, 10min or 1h "
        f"(default: {DEFAULT_INTERVAL})",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits each time on a GPU as well; slower",
    )
    parser.add_argument("--seed", type=int, help="of everything (default: 0)")
    parser.add_argument("--quiet", action="store_true", help="no line an epoch")
    group = parser.add_argument_group(
        "fields of the recipe to replace (the list command shows them)"
    )
    for field in OPTIONS:
        flag = "--" + field.name.replace("_", "-")
        if field.type is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction)
        else:
            kind = {int: int, float: _number}.get(field.type, str)
            group.add_argument(flag, type=kind, metavar="VALUE")


def _finetune_options(parser):
    parser.add_argument(
        "--backbone",
        metavar="NAME|MODEL",
        help=f"{', '.join(BACKBONES)}, or a .keras file of a net of this "
        "package",
    )
    parser.add_argument(
        "--weights",
        metavar="imagenet|hub|none|FILE",
        help="hub takes KerasHub's (extra hub); a FILE is PyTorch's, or "
        "keras.applications' without the top (default: imagenet; a .keras "
        "file brings its own)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="side at which the net works (default: 224; for a .keras file "
        "its own)",
    )
    parser.add_argument(
        "--recipe", help=f"{', '.join(RECIPES)} (default: {FINETUNING})"
    )
    _data_options(parser, "the recipe's")
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="where both phases go (default: a new folder under runs/)",
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with the fine-tuning run in this folder",
    )
    parser.add_argument(
        "--head-epochs",
        type=int,
        metavar="N",
        help="of the first phase, the head alone on the frozen backbone "
        "(default: 2; 0 leaves it out)",
    )
    parser.add_argument(
        "--head-learning-rate",
        type=float,
        metavar="RATE",
        help="of the first phase (default: the recipe's)",
    )
    parser.add_argument(
        "--freeze",
        help=f"{', '.join(FREEZE)}: what stays frozen in the second phase, "
        "the stem and the stages up to that one (default: none)",
    )
    parser.add_argument(
        "--train-norm",
        action="store_true",
        help="train BatchNorm too (default: only with --weights none)",
    )
    parser.add_argument(
        "--cache-features",
        action="store_true",
        help="compute a frozen backbone's features once, without augmentation",
    )
    _run_options(parser)


def _evaluate_options(parser):
    parser.add_argument(
        "models",
        nargs="+",
        type=Path,
        metavar="RUN|MODEL",
        help="run directories or .keras files",
    )
    parser.add_argument(
        "--checkpoint",
        choices=commands.CHECKPOINTS,
        default="last",
        help="which of a run: all adds those kept by epoch (default: last)",
    )
    parser.add_argument(
        "--split",
        choices=("test", "validation", "train"),
        default="test",
        help="(default: test)",
    )
    _data_options(parser, "that of the run")
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="where pictures and JSON go (default: evaluation/ beside the "
        "model)",
    )
    parser.add_argument(
        "--mistakes",
        type=int,
        default=25,
        metavar="N",
        help="how many of the most confident mistakes to draw (default: 25)",
    )


def _predict_options(parser):
    parser.add_argument("model", type=Path, metavar="RUN|MODEL")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--dataset", help="names the classes (default: run's)")
    parser.add_argument(
        "--top", type=int, default=3, metavar="K", help="classes to show"
    )
    parser.add_argument("--json", action="store_true", help="for machines")


def _convert_options(parser):
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help=f"a file of PyTorch ({', '.join(FORMATS)}); with --to-torch a "
        "run directory or a .keras file",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        required=True,
        help="a new .keras file; with --to-torch a new file of PyTorch",
    )
    parser.add_argument(
        "--arch",
        help="what the checkpoint must hold (default: what its tensors say)",
    )
    parser.add_argument(
        "--normalization",
        metavar="NAME",
        help="of the images that the net was trained on: imagenet, per_image "
        "or a dataset (default: the scheme's own)",
    )
    schemes = "; ".join(f"{s.name} ({s.source})" for s in SCHEMES.values())
    parser.add_argument(
        "--to-torch",
        metavar="SCHEME",
        help=f"write for PyTorch, under the names of {schemes}",
    )
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="on the test split of --dataset",
    )
    _data_options(parser, "none")


def _export_options(parser):
    parser.add_argument("model", type=Path, metavar="RUN|MODEL")
    parser.add_argument(
        "--format", choices=EXPORT_FORMATS, default="saved_model"
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="LiteRT in whole numbers, calibrated on images of the train split",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        required=True,
        help="the model's folder, for the next free version; or a version of "
        "it, e.g. saved_models/resnet20/1",
    )
    parser.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        default="last",
        help="which of a run (default: last)",
    )
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="how many test images to verify on (default: all)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="P",
        help="how far a probability may be off from the Keras model's "
        f"(default: {TOLERANCE:.0e})",
    )
    _data_options(parser, "that of the run")


def _list_options(parser):
    parser.add_argument("--json", action="store_true", help="for machines")


def _data_options(parser, default):
    parser.add_argument(
        "--dataset",
        help=f"{', '.join(DATASETS)}, or a folder with a folder a class in "
        f"train/ (and val/, test/) (default: {default})",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="a copy of the data in any layout; else KERAS_RESNET_CIFAR_DATA, "
        "the caches of Keras, torchvision and tfds, then a download",
    )
    parser.add_argument(
        "--source",
        help="; ".join(f"{name}: {told}" for name, told in SOURCES.items()),
    )
    parser.add_argument(
        "--allow-unverified",
        action="store_true",
        default=None,
        help="go on with data that is not the published one",
    )


def _number(text):
    """An int where it is one, so that counts stay counts."""
    try:
        return int(text)
    except ValueError:
        return float(text)


_COMMANDS = {
    "train": (training_commands.train, _train_options),
    "finetune": (training_commands.finetune, _finetune_options),
    "evaluate": (commands.evaluate, _evaluate_options),
    "predict": (commands.predict, _predict_options),
    "convert": (commands.convert, _convert_options),
    "export": (commands.export, _export_options),
    "list": (commands.list_tables, _list_options),
}
