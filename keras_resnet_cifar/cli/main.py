"""The command line: selects a command, runs it and reports errors.

No module imported here is heavy, so that help, and errors that need no Keras,
appear at once.
"""

import argparse
import contextlib
import importlib
import os
import re
import shlex
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import keras_resnet_cifar
from keras_resnet_cifar.errors import (
    Diverged,
    ExportFailed,
    InputError,
    one_line,
    similar,
)

# Tasks, and the commands for them, each with the arguments of an example.
COMMANDS = {
    "train": {
        "train": "--arch resnet20 --dataset cifar10",
        "finetune": "--backbone resnet50 --dataset cifar100",
        "sweep": "--param learning_rate=log:0.05:0.8 --trials 40",
    },
    "evaluate and inspect": {
        "evaluate": "runs/first --report report.html",
        "predict": "runs/first photo.png --explain why.png",
        "demo": "runs/first",
    },
    "export and convert": {
        "export": "runs/first --out saved_models/first",
        "convert": "resnet20.th -o resnet20.keras",
    },
    "list what is available": {"list": "--json"},
}
EXIT_CODES = {ExportFailed: 1, InputError: 2, Diverged: 3}
# A call in Python, which is not rewritten, or `name=value`.
_ARGUMENT = re.compile(
    r"""\w+\([^()]*\)
    |(?<![\w/.=-])(?P<name>[a-z]\w*)=
    (?P<value>'[^']*'|"[^"]*"|\.(?=\s)|[^\s,;`]*[^\s,;:.)`]|)""",
    re.VERBOSE,
)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Does not wrap examples, and does not break names at hyphens."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line, in terms of its options."""

    def format_usage(self) -> str:
        """Returns one line with the required arguments and `[options]`."""
        words = [self.prog, "[options]"]
        for action in self._actions:
            name = str(action.metavar or action.dest.upper())
            if action.nargs == "*":
                words.append(f"[{name} ...]")
            elif action.required:
                words += [*action.option_strings[-1:], name]
                words += ["..."] * (action.nargs == "+")
        return f"usage: {' '.join(words)}\n"

    def format_help(self) -> str:
        """Returns the help with the short usage."""
        self.usage = self.format_usage().removeprefix("usage: ").strip()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Raises `InputError` instead of printing the usage."""
        raise InputError(f"{message} (see {self.prog} --help)")

    def in_options(self, message: str) -> str:
        """Rewrites the Python arguments in a message as this command's options.

        `batch_size=64` becomes `--batch-size 64`, `data_dir=` becomes
        `--data-dir`, `quiet=True` becomes `--quiet`, `flip=False` becomes
        `--no-flip`, and `images=` becomes `IMAGE` if that is a positional
        argument. Other names, `name=None` and calls such as `f(seed=1)` are
        not rewritten.
        """
        actions = {action.dest: action for action in self._actions}

        def rewrite(match: re.Match[str]) -> str:
            action, value = actions.get(match["name"]), match["value"]
            if action is None or value == "None":
                return match[0]
            flags = [f for f in action.option_strings if f.startswith("--")]
            if value == "False":
                return flags[1] if len(flags) == 2 else match[0]
            option = flags[0] if flags else str(action.metavar)
            if value in ("", "True"):
                return option
            if value[0] in "'\"":
                value = shlex.quote(value[1:-1])
            return f"{option} {value}"

        return _ARGUMENT.sub(rewrite, message)


def script_parser(run: Callable[..., Any], prog: str | None = None) -> Parser:
    """Returns the parser of a script that has one command, `run`."""
    parser = Parser(prog, description=run.__doc__, allow_abbrev=False)
    parser.set_defaults(run=run, parser=parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    prog = "python -m keras_resnet_cifar"
    parser = Parser(prog, formatter_class=_Help)
    version = f"keras_resnet_cifar {keras_resnet_cifar.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", help=argparse.SUPPRESS
    )
    lines = ["CIFAR ResNets in Keras 3. COMMAND --help shows its options."]
    for task, examples in COMMANDS.items():
        lines.append(f"\n{task}:")
        for name, rest in examples.items():
            module = importlib.import_module(f"keras_resnet_cifar.cli.{name}")
            text, example = module.run.__doc__, f"{prog} {name} {rest}"
            lines += [f"  {name:<10}{text}", f"  {'':10}{example}"]
            command = commands.add_parser(
                name,
                description=f"{text}\n\nexample:\n  {example}",
                formatter_class=_Help,
                allow_abbrev=False,
            )
            command.set_defaults(run=module.run, parser=command, command=name)
            module.add_options(command)
    parser.description = "\n".join(lines)
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions
        import argcomplete

        argcomplete.autocomplete(parser)
    return run(parser, arguments)


def run(parser: Parser, arguments: Sequence[str] | None = None) -> int:
    """Runs the command that a parser sets as `run`; returns the exit code.

    The parser also sets `parser`, that of the command.
    """
    try:
        args, unrecognized = parser.parse_known_args(arguments)
        parser = args.parser
        if unrecognized:
            parser.error(_unrecognized(parser, unrecognized))
        with _plain_warnings(parser):
            args.run(args)
        sys.stdout.flush()  # a full disk fails here, not at exit
    except tuple(EXIT_CODES) as error:
        codes = (c for kind, c in EXIT_CODES.items() if isinstance(error, kind))
        return _fail(parser.in_options(str(error)), next(codes))
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        _discard_output()
    except OSError as error:
        _discard_output()
        remedy = "check permissions and free disk space"
        return _fail(f"{one_line(error)}; {remedy}", EXIT_CODES[InputError])
    except KeyboardInterrupt as interrupt:
        notes = getattr(interrupt, "__notes__", ())
        print("; ".join(["interrupted", *notes]), file=sys.stderr)
        return 128 + getattr(interrupt, "number", signal.SIGINT)
    return 0


def _unrecognized(parser: Parser, words: list[str]) -> str:
    """Returns the message about words that are no arguments of a command."""
    message = f"unrecognized arguments: {' '.join(words)}"
    flags = parser._option_string_actions
    names = {flag.strip("-").replace("-", "_"): flag for flag in flags}
    word = words[0].partition("=")[0].replace("-", "_")
    near = similar(word.strip("_"), names)
    if word.startswith("__") and near:
        message += f"; did you mean {' or '.join(names[n] for n in near)}?"
    return message


@contextlib.contextmanager
def _plain_warnings(parser: Parser) -> Iterator[None]:
    """Prints the warnings of this package in one line each, without source."""
    package = Path(__file__).parents[1]
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_plainly(
            message, category, filename, lineno, file=None, line=None
        ):
            if category is UserWarning and package in Path(filename).parents:
                text = parser.in_options(str(message))
                print(f"warning: {' '.join(text.split())}", file=sys.stderr)
            else:
                show(message, category, filename, lineno, file, line)

        # Overrides the filters of the user and of Python.
        warnings.filterwarnings("always", "", UserWarning, package.name)
        warnings.showwarning = show_plainly
        yield


def _discard_output() -> None:
    """Keeps the interpreter from writing the failed output again at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
    return code
