"""The command line as such: help, exit codes, and errors in one line."""

import importlib
import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import keras_resnet_cifar
from keras_resnet_cifar.cli import main as cli
from keras_resnet_cifar.cli.start import import_keras
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.device import JAX_DETERMINISTIC
from keras_resnet_cifar.errors import (
    Diverged,
    ExportFailed,
    InputError,
    OutOfMemory,
    Stopped,
)
from keras_resnet_cifar.finetuning.backbones import BACKBONES
from keras_resnet_cifar.models.architectures import list_architectures
from keras_resnet_cifar.models.weights import SHIPPED, list_weights
from keras_resnet_cifar.pytorch.schemes import SCHEMES
from keras_resnet_cifar.training import train
from keras_resnet_cifar.training.recipes import OPTIONS, RECIPES

ROOT = Path(__file__).parents[2]
LIGHT = """
import sys
from keras_resnet_cifar.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
heavy = {"keras", "tensorflow", "jax", "torch", "matplotlib", "PIL", "pandas"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
sys.exit(code)
"""


def python(*arguments, **options):
    """Runs Python; returns the finished process with its output as text."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def parser_of_a_command():
    parser = cli.Parser(prog="a command")
    parser.add_argument("images", nargs="*", metavar="IMAGE")
    parser.add_argument("-o", "--output")
    for name in ("batch-size", "data-dir", "source", "learning-rate", "resume"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--allow-unverified", action="store_true")
    parser.add_argument("--flip", action=cli.argparse.BooleanOptionalAction)
    return parser


MESSAGES = {
    "batch_size=64: too large": "--batch-size 64: too large",
    "try batch_size=64, or less": "try --batch-size 64, or less",
    "learning_rate=1e-05.": "--learning-rate 1e-05.",
    "check data_dir= or its copy": "check --data-dir or its copy",
    "data_dir=/a/b.c: empty": "--data-dir /a/b.c: empty",
    "(data_dir=, source=)": "(--data-dir, --source)",
    "take source='huggingface'": "take --source huggingface",
    'take source="a b"': "take --source 'a b'",
    "source='' is empty": "--source '' is empty",
    "allow_unverified=True": "--allow-unverified",
    "go on with resume=True": "go on with --resume",
    "allow_unverified=False": "allow_unverified=False",
    "train with flip=True": "train with --flip",
    "train with flip=False": "train with --no-flip",
    "source=None": "source=None",
    "output=. is not empty": "--output . is not empty",
    "output='x.keras' exists": "--output x.keras exists",
    "images=[] is empty": "IMAGE [] is empty",
    "model=1, seed=2": "model=1, seed=2",
    "load(source=1) or source=1": "load(source=1) or --source 1",
    "runs/batch_size=64 is a file": "runs/batch_size=64 is a file",
    "`batch_size=64`": "`--batch-size 64`",
}


@pytest.mark.parametrize("message", MESSAGES)
def test_python_arguments_become_options(message):
    assert parser_of_a_command().in_options(message) == MESSAGES[message]


OUTCOMES = [
    (InputError("batch_size=0: too\nsmall"), 2, "--batch-size 0: too small"),
    (OutOfMemory("lower batch_size="), 2, "error: lower --batch-size"),
    (ExportFailed("source='x' failed"), 1, "error: --source x failed"),
    (Diverged("try learning_rate=0.1"), 3, "error: try --learning-rate 0.1"),
    (OSError(28, "No space left"), 2, "No space left"),
    (KeyboardInterrupt(), 130, "interrupted\n"),
    (Stopped(signal.SIGTERM), 143, "interrupted\n"),
]


@pytest.mark.parametrize(("error", "code", "text"), OUTCOMES)
def test_an_error_is_one_line_and_an_exit_code(error, code, text, capfd):
    def command(args):
        raise error

    parser = parser_of_a_command()
    parser.set_defaults(run=command, parser=parser)
    assert cli.run(parser, []) == code
    line = capfd.readouterr().err
    assert text in line
    assert line.count("\n") == 1


def test_a_warning_of_this_package_is_one_plain_line(capfd):
    def command(args):
        frame = {"__name__": "keras_resnet_cifar.training.train"}
        text = "backup.npz is damaged:\nresume=True takes the one before"
        for file in (train.__file__, "elsewhere.py"):
            source = f"import warnings; warnings.warn({text!r})"
            exec(compile(source, file, "exec"), frame)

    parser = parser_of_a_command()
    parser.set_defaults(run=command, parser=parser)
    with pytest.warns(UserWarning, match="damaged") as others:
        assert cli.run(parser, []) == 0
    assert capfd.readouterr().err == (
        "warning: backup.npz is damaged: --resume takes the one before\n"
    )
    assert [warning.filename for warning in others] == ["elsewhere.py"]


HELP = {
    "train": (*RECIPES, *DATASETS, "--label-smoothing", "per epoch"),
    "finetune": (*BACKBONES, *RECIPES, "stage4"),
    "sweep": (*RECIPES, "NAME=RANGE", "--learning-rate", "sqlite:///"),
    "evaluate": ("RUN|MODEL", *DATASETS, "(default: 25)"),
    "predict": ("IMAGE", "print JSON"),
    "convert": (*SCHEMES, ".safetensors"),
    "export": ("litert", "1e-05", "run directory"),
    "demo": ("RUN|MODEL", "cifar10, cifar100, shapes", "7860"),
    "list": ("--json",),
}


@pytest.mark.parametrize("command", HELP)
def test_help_comes_from_the_tables(command, run, capsys):
    with pytest.raises(SystemExit) as stop:
        run(command, "--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert [word for word in HELP[command] if word not in text] == []


def test_help_shows_an_example_of_each_command(run, capsys, monkeypatch):
    examples = {}
    for commands in cli.COMMANDS.values():
        examples |= commands
    assert set(examples) == set(HELP)
    with pytest.raises(SystemExit):
        run("--help")
    text = capsys.readouterr().out
    for command, rest in examples.items():
        assert f"keras_resnet_cifar {command} {rest}" in text
        module = importlib.import_module(f"keras_resnet_cifar.cli.{command}")
        parsed = []
        monkeypatch.setattr(module, "run", parsed.append)
        assert run(command, *rest.split()) == 0
        assert len(parsed) == 1


def test_version(run, capsys):
    with pytest.raises(SystemExit):
        run("--version")
    assert keras_resnet_cifar.__version__ in capsys.readouterr().out


def test_each_field_of_a_recipe_is_an_option(run, capsys):
    for command in ("train", "finetune"):
        with pytest.raises(SystemExit):
            run(command, "--help")
        text = capsys.readouterr().out
        for field in OPTIONS:
            assert f"--{field.name.replace('_', '-')}" in text


def test_list_shows_the_tables(run, capsys):
    assert run("list") == 0
    text = capsys.readouterr().out
    names = [row["name"] for row in list_architectures()]
    weights = [row["where"] for row in list_weights()]
    for word in (*RECIPES, *DATASETS, *names, *weights, "19,421,274"):
        assert word in text
    assert run("list", "--json") == 0
    tables = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in tables["recipes"]] == list(RECIPES)
    assert [row["name"] for row in tables["datasets"]] == list(DATASETS)
    assert tables["architectures"] == list_architectures()


LIGHT_COMMANDS = {
    ("--help",): 0,
    ("train", "--help"): 0,
    ("list",): 0,
    ("train", "--arch", "resnet21"): 2,
    ("train", "--resume", "nowhere"): 2,
    ("train", "--backup-every", "often"): 2,
    ("finetune", "--backbone", "resnet19"): 2,
    ("evaluate", "nowhere"): 2,
    ("predict", "nowhere", "a.png"): 2,
    ("convert", "a.th", "-o", "a.txt"): 2,
    ("export", "nowhere", "--out", "there"): 2,
}


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(arguments, marks=[pytest.mark.slow] * (index > 3))
        for index, arguments in enumerate(LIGHT_COMMANDS)
    ],
    ids=" ".join,
)
def test_help_and_simple_errors_need_no_keras(arguments, tmp_path):
    result = python("-c", LIGHT, *arguments, cwd=tmp_path)
    assert result.returncode == LIGHT_COMMANDS[arguments], result.stderr


BEFORE_KERAS = """
import sys
from keras_resnet_cifar.cli.main import main
code = main(sys.argv[1:])
assert "keras" not in sys.modules
sys.exit(code)
"""


def test_predict_looks_at_the_files_before_keras_starts(tmp_path):
    (tmp_path / "resnet20.th").write_bytes(b"whole")
    for arguments, word in (
        (
            (SHIPPED / "shapes-resnet8.keras", "nosuch.png"),
            "nosuch.png does not exist",
        ),
        (("resnet20.th", "a.png"), "the command convert"),
    ):
        command = ("-c", BEFORE_KERAS, "predict", *arguments)
        result = python(*command, cwd=tmp_path)
        assert result.returncode == 2, result.stderr
        assert word in result.stderr
        assert "damaged" not in result.stderr


def without_log_level(**variables):
    """An environment in which the user chose no level of TensorFlow's log."""
    variables = {**os.environ, **variables}
    del variables["TF_CPP_MIN_LOG_LEVEL"]
    return variables


def test_the_log_of_tensorflow_is_off_unless_the_user_chose():
    code = "import os, keras_resnet_cifar; "
    code += "print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    chosen = without_log_level() | {"TF_CPP_MIN_LOG_LEVEL": "0"}
    for variables, level in ((without_log_level(), "3"), (chosen, "0")):
        assert python("-c", code, env=variables).stdout == f"{level}\n"


BACKENDS = [b for b in ("tensorflow", "jax", "torch") if find_spec(b)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_tensorflow_prints_nothing(backend, fast, tmp_path):
    """What TensorFlow 2.21 prints while it is imported no level stops."""
    env = without_log_level(KERAS_BACKEND=backend)
    train = ("-m", "keras_resnet_cifar", "train", *fast, "--epochs", "1")
    result = python(*train, env=env, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    build = "import keras_resnet_cifar as krc; krc.build_resnet('resnet8')"
    lines = python("-c", build, env=env).stderr.splitlines()
    on_import = ("InitializeLog()", "port.cc", "cudart_stub.cc")
    others = [x for x in lines if not any(word in x for word in on_import)]
    assert others == []
    assert backend == "tensorflow" or lines == []


def test_a_shell_completes(tmp_path):
    """By argcomplete, which an extra brings."""
    pytest.importorskip("argcomplete", reason="it completes words")
    line = "keras-resnet-cifar exp"
    out = tmp_path / "completions"
    variables = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(out),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    python("-m", "keras_resnet_cifar", env=os.environ | variables)
    assert out.read_text().strip() == "export"


def test_an_unknown_backend(tmp_path):
    result = python(
        *("-m", "keras_resnet_cifar", "train"),
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": "theano"},
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "theano" in result.stderr


def test_jax_is_asked_to_repeat_before_it_starts(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_before")
    import_keras()
    assert os.environ["XLA_FLAGS"] == "--xla_before"
    import_keras(deterministic=True)
    assert os.environ["XLA_FLAGS"] == f"--xla_before {JAX_DETERMINISTIC}"
    # JAX 0.11 takes a value that begins with a space for a file's name.
    monkeypatch.delenv("XLA_FLAGS")
    import_keras(deterministic=True)
    assert os.environ["XLA_FLAGS"] == JAX_DETERMINISTIC


def test_output_into_a_closed_pipe():
    shell = f"{sys.executable} -m keras_resnet_cifar list | head -1"
    result = subprocess.run(shell, shell=True, capture_output=True, text=True)
    assert result.stdout.startswith("architectures")
    assert result.stderr == ""


SCRIPTS = ("train", "finetune", "evaluate", "predict", "convert", "export")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name != "train"))
        for name in SCRIPTS
    ],
)
def test_scripts_and_module_are_the_same(name, tmp_path):
    script = python(ROOT / f"scripts/{name}.py", "--dataset", cwd=tmp_path)
    module = python("-m", "keras_resnet_cifar", name, "--dataset", cwd=tmp_path)
    assert script.stderr == module.stderr
    assert f"keras_resnet_cifar {name} --help" in script.stderr
    assert script.returncode == module.returncode == 2
