"""The results of finished trainings: JSON files, and tables made from them."""

import json
import re
import shlex
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.manifest import Row
from benchmarks.runs import Job, evaluation, seconds_left
from keras_resnet_cifar.cli.options import aligned, mean_and_deviation
from keras_resnet_cifar.errors import InputError, checked_number, explained
from keras_resnet_cifar.files import make_folder, write_json, write_text
from keras_resnet_cifar.training.many_runs import epoch_seconds
from keras_resnet_cifar.training.run_directory import read_csv

# The fields of a recipe that decide what a step costs.
_COSTLY = (
    *("batch_size", "optimizer", "ema", "cutout", "mixup", "cutmix"),
    *("rand_augment", "random_resized_crop"),
)
# The part of the README between these lines is replaced.
BEGIN = "<!-- results: written by scripts/reproduce.py --write -->"
END = "<!-- end of results -->"
_HEAD = (
    *("row", "net", "data", "epochs", "top-1, last epoch", "seeds"),
    *("s / epoch", "device", "source", "difference"),
)
_HOW = (
    "Test accuracy after the last epoch: mean ± standard deviation over seeds. "
    "Seconds per epoch are those of the fastest epoch of this net on this "
    "device, in any row: trainings that ran side by side took longer. The "
    "difference to the source is in points; its net or epochs may differ. To "
    "repeat a row, run `.venv/bin/python scripts/reproduce.py --only ROW`; on "
    "a GPU, with `KERAS_BACKEND=jax`"
)


def record(job: Job) -> dict[str, Any] | None:
    """Returns the results of a run as JSON.

    It is `None` before the first epoch, and if `job.progress()` reports a
    fault. Raises `InputError` if another file of the run is damaged.
    """
    progress = job.progress()
    if not progress.epoch:
        return None
    with explained(f"{job.run.path} is unusable", "restore or remove the file"):
        return _record(job, progress)


def _record(job, progress):
    config = job.run.read_config()
    usual = replace(job, folder=Path("runs", job.folder.resolve().name))
    return {
        "seed": job.seed,
        "epochs_done": progress.epoch,
        "epochs": progress.epochs,
        "accuracy": progress.accuracy,
        "seconds": round(progress.seconds, 1),
        "epoch_seconds": min(epoch_seconds(job.run, config)),
        "log": _log(job),
        "command": f"KERAS_BACKEND={config['backend']} python scripts/"
        f"{job.script}.py {shlex.join(usual.options())}",
        "arch": config["arch"],
        "parameters": config["parameters"],
        "weights": config["weights"],
        "dataset": config["dataset"]["name"],
        "images": [config["dataset"][s] for s in ("train", "test")],
        "recipe": config["recipe"],
        "precision": config["precision"],
        "backend": config["backend"],
        "accelerator": config.get("accelerator"),
        "machine": _json(job.machine) if job.machine.exists() else None,
        "versions": config["versions"],
    }


def _log(job):
    """Returns the accuracies after epochs with a checkpoint or in `Row.log`."""
    tests = {
        int(path.stem.rpartition("-")[2]): _json(evaluation(path))["top1"]
        for path in job.run.checkpoints()
        if evaluation(path).exists()
    }
    log = {}
    for row in read_csv(job.run.history):
        if (epoch := int(row["epoch"])) in {*tests, *job.row.log}:
            known = {"train": row["accuracy"], "test": tests.get(epoch)}
            known["validation"] = row.get("val_accuracy")
            log[str(epoch)] = {
                k: round(float(v), 4)
                for k, v in known.items()
                if v not in (None, "")
            }
    return log


def write(
    jobs: Sequence[Job],
    rows: Sequence[Row],
    root: Path,
    report: Callable[[str], Any] = print,
) -> list[Path]:
    """Writes docs/results/ from the runs, then the tables from docs/results/.

    docs/results/ keeps the seeds of which no run has as many epochs, if their
    recipe is the same. The tables have the order of `rows`; `root` holds
    README.md and docs/. `report` is called with a line about each run that is
    left out, and about each finished seed that is replaced. Returns the files
    written.
    """
    folder = root / "docs" / "results"
    readme, page = root / "README.md", root / "docs" / "results.md"
    before, after = _around_the_table(readme)
    for fault in filter(None, (job.progress().fault for job in jobs)):
        report(fault)
    results = []
    for row in rows:
        path = folder / f"{row.name}.json"
        earlier = _saved(row, path) if path.exists() else []
        seeds = []
        for job in jobs:
            if job.row is row:
                try:
                    seeds.append(record(job))
                except InputError as error:
                    report(str(error))
        seeds = list(filter(None, seeds))
        if seeds := _with_earlier(row, seeds, earlier, report):
            results.append((row, seeds))
    if not results:
        raise InputError(
            "no training has finished an epoch: train first, without write="
        )
    pace = paces(seed for _, seeds in results for seed in seeds)
    lines = [_cells(row, seeds, pace) for row, seeds in results]
    done = [cells for cells in lines if cells[_HEAD.index("seeds")] != "0"]
    sections = "\n\n".join(_section(*result) for result in results)
    known = [row.name for row, _ in results]
    missing = ", ".join(row.name for row in rows if row.name not in known)
    to_do = f"Not trained yet: {missing}.\n\n" if missing else ""
    how = f"{_HOW}. [Results](docs/results.md) lists each seed, the machine "
    how += "and the versions, and has the rows that are not finished."
    make_folder(folder)
    written = [folder / f"{name}.json" for name in known]
    for path, (row, seeds) in zip(written, results, strict=True):
        write_json(path, {"row": row.name, "seeds": seeds})
    table = markdown([_HEAD, *lines])
    write_text(page, f"# Results\n\n{_HOW}.\n\n{table}\n\n{to_do}{sections}\n")
    table = markdown([_HEAD, *done])
    write_text(readme, f"{before}{BEGIN}\n\n{how}\n\n{table}\n\n{END}{after}")
    return [*written, page, readme]


def _with_earlier(row, seeds, earlier, report):
    """Adds the seeds that came further elsewhere, with the same recipe."""
    found = {
        seed["seed"]: seed
        for seed in earlier
        if not seeds or _settings(seed) == _settings(seeds[0])
    }
    for seed in seeds:
        other = found.get(seed["seed"], seed)
        if seed["epochs_done"] < other["epochs_done"]:
            continue
        if seed["accuracy"] != other["accuracy"] is not None:
            report(
                f"{row.name}, seed {seed['seed']}: "
                f"{seed['accuracy']:.2%} on {place(seed)} replaces "
                f"{other['accuracy']:.2%} on {place(other)}"
            )
        found[seed["seed"]] = seed
    return [found[seed] for seed in sorted(found)]


def _saved(row, path):
    """Returns the seeds that a file of docs/results/ has."""
    with explained(f"{path} holds no results", "restore or remove it"):
        seeds = _json(path)["seeds"]
        # Raise if something is missing.
        _cells(row, seeds, paces(seeds))
        _section(row, seeds)
        for seed in seeds:
            checked_number("accuracy", seed["accuracy"] or 0, most=1)
            _settings(seed)
        return seeds


def _settings(seed):
    recipe = seed["recipe"]
    named = {k: recipe[k] for k in recipe if k not in ("source", "expected")}
    return named, seed["weights"]


def _around_the_table(readme):
    with explained(f"cannot read {readme}", "restore it"):
        text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(
            f"{readme} lacks the lines {BEGIN} and {END}: add them"
        )
    return before, after


def _json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def accuracy(records: Iterable[dict[str, Any]]) -> str:
    """Returns mean ± standard deviation of the finished ones, in percent."""
    values = [100 * r["accuracy"] for r in records if r["accuracy"] is not None]
    return f"{mean_and_deviation(values, 2)} %" if values else ""


def mean_of(records: Iterable[dict[str, Any]], key: str) -> float | None:
    """Returns the mean of an entry of the finished ones, if there are any."""
    values = [r[key] for r in records if r["accuracy"] is not None]
    return statistics.mean(values) if values else None


def paces(seeds: Iterable[dict[str, Any]]) -> dict[tuple, float]:
    """Returns the seconds of the fastest epoch of each kind of training."""
    fastest: dict[tuple, float] = {}
    for seed in seeds:
        key, seconds = pace_key(seed), seed["epoch_seconds"]
        fastest[key] = min(seconds, fastest.get(key, seconds))
    return fastest


def pace_key(seed: dict[str, Any]) -> tuple:
    """Returns what trainings of about the same speed have in common."""
    recipe = seed["recipe"]
    how = [str(recipe.get(name)) for name in _COSTLY]
    where = seed["backend"], place(seed)
    net = seed["arch"], seed["parameters"], seed["images"][0]
    return *net, seed["precision"], *how, *where


def place(seed: dict[str, Any]) -> str:
    """Returns the accelerator, or else the processor."""
    machine = seed["machine"] or {"processor": "an unknown machine"}
    return seed["accelerator"] or machine["processor"]


def _cells(row, seeds, pace):
    """Returns a row of the table."""
    mean, expected = mean_of(seeds, "accuracy"), row.expected
    finished = [seed for seed in seeds if seed["accuracy"] is not None]
    first = (finished or seeds)[0]
    places = {place(s): pace[pace_key(s)] for s in finished or seeds}
    shown = [f"{s:.2f}" if s < 10 else f"{s:,.0f}" for s in places.values()]
    unfinished = [
        f"seed {s['seed']}: {s['epochs_done']} of {s['epochs']} epochs done"
        for s in seeds
        if s["accuracy"] is None
    ]
    return (
        row.name,
        re.sub("^finetuned-(.*)", r"\1, fine-tuned", first["arch"]),
        first["dataset"],
        str(first["epochs"]),
        "; ".join(filter(None, [accuracy(seeds), *unfinished])),
        str(len(finished)),
        "; ".join(shown) if finished else "",
        "; ".join(places),
        f"{100 * expected:.2f} %, {row.source}" if expected else "",
        f"{100 * (mean - expected):+.2f}" if mean and expected else "",
    )


def _section(row, seeds):
    """Returns the seeds of a row in Markdown."""
    lines = [f"## {row.name}"]
    for seed in seeds:
        outcome = accuracy([seed]) or "not finished"
        device, host = place(seed), seed["machine"]
        if host and seed["accelerator"]:
            device += f", {host['processor']}"
        if host:
            device += f", cores: {host['cores']}"
        versions = ", ".join(f"{k} {v}" for k, v in seed["versions"].items())
        block = [
            f"```bash\n{seed['command']}\n```\n",
            f"- seed {seed['seed']}: {outcome}, epochs: {seed['epochs_done']} "
            f"of {seed['epochs']}, seconds: {seed['seconds']:,.0f}",
            f"- {seed['precision']} on {seed['backend']}, {device} "
            f"({versions})",
        ]
        lines.append("\n".join(block))
        if seed.get("log"):
            source = {str(epoch): known for epoch, known in row.log.items()}
            lines.append(_log_table(seed["log"], source))
    return "\n\n".join(lines)


def _log_table(log, source):
    """Returns the accuracies after some epochs beside those of the source."""
    columns = [
        (f"{split}{whose}", entries, split)
        for split in ("train", "validation", "test")
        for whose, entries in (("", log), (", source", source))
        if any(split in entries.get(epoch, {}) for epoch in log)
    ]
    rows = [["epoch", *(title for title, *_ in columns)]]
    for epoch in log:
        known = [entries.get(epoch, {}).get(x) for _, entries, x in columns]
        shown = ["" if top1 is None else f"{top1:.2%}" for top1 in known]
        rows.append([epoch, *shown])
    return markdown(rows)


def status(jobs: Sequence[Job]) -> str:
    """Returns a table of rows, their state and the time left."""
    table = [("row", "seeds done", "state", "time left")]
    faults = []
    for row in dict.fromkeys(job.row.name for job in jobs):
        seeds = {j.seed: j.progress() for j in jobs if j.row.name == row}
        faults += [p.fault for p in seeds.values() if p.fault]
        done = sum(p.state == "done" for p in seeds.values())
        begun = [
            f"seed {seed} {progress}"
            for seed, progress in seeds.items()
            if progress.state not in ("done", "to do")
        ]
        state = "done" if done == len(seeds) else ", ".join(begun) or "to do"
        left = seconds_left(list(seeds.values()))
        table.append((row, f"{done} of {len(seeds)}", state, _duration(left)))
    return "\n".join([aligned(table), *faults])


def _duration(seconds):
    if seconds is None:
        return "unknown"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min" if seconds else ""
    return f"{seconds / 3600:.1f} h"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as a Markdown table; the first is the head."""
    head, *rest = rows
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
