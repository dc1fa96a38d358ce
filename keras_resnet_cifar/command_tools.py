"""What several commands share: starting Keras, options, what is printed."""

import contextlib
import os

from keras_resnet_cifar.errors import InputError


def import_keras():
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


def data_options(args):
    """The arguments of `load_dataset` that were given as options."""
    names = ("data_dir", "source", "allow_unverified")
    given = {name: getattr(args, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def told(test):
    return (
        f"top-1 {test['top1']:.2%}, top-5 {test['top5']:.2%}, "
        f"loss {test['loss']:.4f}, calibration error {test['ece']:.4f}"
    )


def files_in(directory):
    return sorted(path.name for path in directory.iterdir())


def described(data):
    """A dataset's name, sizes and origin, for people."""
    return (
        f"{data.name} ({len(data.train):,} train, "
        f"{len(data.validation or ()):,} validation, {len(data.test):,} test "
        f"images; {'verified' if data.verified else 'NOT verified'}; "
        f"{data.source})"
    )


def print_results(run):
    """Prints what a finished run reached, and what it wrote."""
    for name, found in run.metrics.items():
        print(f"{name} (epoch {found['epoch']}): {told(found['test'])}")
    print(f"wrote {run.directory}: {', '.join(files_in(run.directory))}")
