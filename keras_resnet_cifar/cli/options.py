"""What several commands share: options, and what is printed."""


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
