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
from keras_resnet_cifar.errors import InputError, one_line
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
    "device, without saving; runs that shared the device took longer. The "
    "difference to the source is in points; its net or epochs may differ. To "
    "repeat a row, run `.venv/bin/python scripts/reproduce.py --only ROW`; on "
    "a GPU, with `KERAS_BACKEND=jax`"
)


def record(job: Job) -> dict[str, Any] | None:
    """Returns the results of a run as JSON.

    It is `None` before the first epoch, and if the run is unusable.
    """
    progress = job.progress()
    if not progress.epoch:
        return None
    config = job.run.read_config()
    usual = replace(job, folder=Path("runs/reproduce"))
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
            log[epoch] = {
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

    Finished seeds that exist only in docs/results/ are kept if their recipe is
    the same. The tables have the order of `rows`; `root` holds README.md and
    docs/. `report` is called with a line about each run that is left out.
    Returns the files written.
    """
    folder, written = root / "docs" / "results", []
    readme = root / "README.md"
    before, after = _around_the_table(readme)
    paths = [folder / f"{row.name}.json" for row in rows]
    earlier = {path: _saved(path) for path in paths if path.exists()}
    for fault in filter(None, (job.progress().fault for job in jobs)):
        report(fault)
    for row, path in zip(rows, paths, strict=True):
        records = [record(job) for job in jobs if job.row is row]
        if seeds := [entry for entry in records if entry is not None]:
            make_folder(folder)
            value: dict[str, Any] = {"row": row.name}
            value["seeds"] = _with_earlier(seeds, earlier.get(path, []))
            value |= {"expected": row.expected, "source": row.source}
            value["log"] = row.log
            write_json(path, value)
            written.append(path)
    results = [_json(path) for path in paths if path.exists()]
    if not results:
        raise InputError(
            "no training has finished an epoch: train first, without write="
        )
    pace = paces(seed for result in results for seed in result["seeds"])
    lines = [_cells(result, pace) for result in results]
    done = [cells for cells in lines if cells[_HEAD.index("seeds")] != "0"]
    sections = "\n\n".join(map(_section, results))
    missing = [
        row.name
        for row, path in zip(rows, paths, strict=True)
        if not path.exists()
    ]
    to_do = f"Not trained yet: {', '.join(missing)}.\n\n" if missing else ""
    table = markdown([_HEAD, *lines])
    page = f"# Results\n\n{_HOW}.\n\n{table}\n\n{to_do}{sections}\n"
    write_text(root / "docs" / "results.md", page)
    line = f"{_HOW}. [Results](docs/results.md) lists each seed, the machine "
    line += "and the versions, and has the rows that are not finished."
    table = markdown([_HEAD, *done])
    write_text(readme, f"{before}{BEGIN}\n\n{line}\n\n{table}\n\n{END}{after}")
    return [*written, root / "docs" / "results.md", readme]


def _with_earlier(seeds, earlier):
    """Adds the seeds that were finished elsewhere with the same recipe."""
    found = {
        seed["seed"]: seed
        for seed in earlier
        if seed["accuracy"] is not None
        and _settings(seed) == _settings(seeds[0])
    }
    for seed in seeds:
        if seed["accuracy"] is not None or seed["seed"] not in found:
            found[seed["seed"]] = seed
    return [found[seed] for seed in sorted(found)]


def _saved(path):
    """Returns the seeds that a file of docs/results/ has."""
    try:
        return [seed for seed in _json(path)["seeds"] if _settings(seed)]
    except (TypeError, LookupError):
        raise InputError(
            f"{path} holds no results: restore or remove it"
        ) from None


def _settings(seed):
    recipe = seed["recipe"]
    return {k: recipe[k] for k in recipe if k not in ("source", "expected")}


def _around_the_table(readme):
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(
            f"{readme} lacks the lines {BEGIN} and {END}: add them"
        )
    return before, after


def _json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {path} ({one_line(error)}): restore or remove it"
        ) from error


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


def _cells(result, pace):
    """Returns a row of the table."""
    seeds, expected = result["seeds"], result["expected"]
    mean = mean_of(seeds, "accuracy")
    finished = [seed for seed in seeds if seed["accuracy"] is not None]
    first = (finished or seeds)[0]
    seconds = pace[pace_key(first)]
    shown = f"{seconds:.2f}" if seconds < 10 else f"{seconds:,.0f}"
    unfinished = [
        f"seed {s['seed']}: {s['epochs_done']} of {s['epochs']} epochs done"
        for s in seeds
        if s["accuracy"] is None
    ]
    source = f"{100 * expected:.2f} %, {result['source']}" if expected else ""
    return (
        result["row"],
        re.sub("^finetuned-(.*)", r"\1, fine-tuned", first["arch"]),
        first["dataset"],
        str(first["epochs"]),
        "; ".join(filter(None, [accuracy(seeds), *unfinished])),
        str(len(seeds) - len(unfinished)),
        shown if finished else "",
        place(first),
        source,
        f"{100 * (mean - expected):+.2f}" if mean and expected else "",
    )


def _section(result):
    """Returns the seeds of a row in Markdown."""
    lines = [f"## {result['row']}"]
    for seed in result["seeds"]:
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
            lines.append(_log_table(seed["log"], result.get("log", {})))
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
