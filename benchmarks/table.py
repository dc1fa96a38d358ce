"""A benchmark's result as a table, in text or Markdown."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_resnet_cifar.errors import InputError, one_line

_MIB = 2**20
_HEAD = (
    "contender",
    "images/s",
    "ratio, median (least to most)",
    "of the limit",
    "first step, cold",
    "again",
    "memory",
)


def read(path: Path) -> dict[str, Any]:
    """Returns a result of `benchmark` from its JSON file."""
    try:
        result = json.loads(path.read_text())
        if not result["contenders"]:
            raise ValueError("no contender in it")
        as_text(result)
    except Exception as error:  # JSON of another shape raises anything
        raise InputError(
            f"{path} holds no benchmark ({one_line(error)}): give a file "
            "written by --output"
        ) from error
    return result


def as_text(result: dict[str, Any]) -> str:
    """Returns a result of `benchmark` as an aligned table."""
    table = [_HEAD, *_rows(result)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for name, *rest in table:
        cells = [name.ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*_heading(result), *lines, *_notes(result)])


def as_markdown(result: dict[str, Any]) -> str:
    """Returns the same in Markdown, below the command that repeats it."""
    rows = [_HEAD, ("---",) + ("---:",) * (len(_HEAD) - 1), *_rows(result)]
    table = [f"| {' | '.join(row)} |" for row in rows]
    notes = [f"- {line}" for line in _notes(result)]
    blocks = [f"    {_command(result)}"], _heading(result), table, notes
    return "\n\n".join("\n".join(block) for block in blocks)


def _command(result: dict[str, Any]) -> str:
    setting = result["setting"]
    names = [row["name"] for row in result["contenders"]]
    return (
        f"KERAS_BACKEND={result['backend']} .venv/bin/python "
        f"scripts/benchmark.py --arch {setting['arch']} --batch-size "
        f"{setting['batch_size']} --precision {setting['precision']} --steps "
        f"{setting['steps']} --rounds {setting['rounds']} --contenders "
        f"{','.join([*names, *result['left_out']])}"
    )


def _heading(result: dict[str, Any]) -> list[str]:
    """What was run, and where."""
    setting, host = result["setting"], result["machine"]
    versions = ", ".join(
        f"{name} {result['versions'][name]}"
        for name in ("keras", "tensorflow", "jax", "torch")
        if name in result["versions"]
    )
    accelerator = result["accelerator"]
    lines = [
        f"{setting['arch']}, batch {setting['batch_size']}, "
        f"{setting['precision']}, Keras on {result['backend']} "
        f"({versions}); {f'{accelerator}; ' if accelerator else ''}"
        f"{host['processor']}, {host['cores']} cores, {host['system']}; "
        f"others used up to {max(result['others']):.0%} of the cores",
    ]
    if result["busy"]:
        lines.append(
            "BUSY: other programs used the cores, which slows PyTorch most, so "
            "even the ratios are unreliable. Repeat on an idle machine."
        )
    return lines


def _rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    first: dict[str, str] = {}
    for row in result["contenders"]:
        leader = first.setdefault(row["kind"], row["name"])
        ratio = result["ratios"].get(f"{leader} / {row['name']}")
        share = row["median"] / _limit(result)
        starts = row["first_step_seconds"]
        spread = "{median:.2f} ({least:.2f} to {most:.2f})"
        yield (
            row["name"],
            f"{row['median']:,.0f}",
            f"{leader} / this: {spread.format(**ratio)}" if ratio else "",
            f"{share:.1%}" if row["kind"] == "train" else "",
            *(f"{s:.1f} s" if s else "" for s in starts.values()),
            _memory(row),
        )


def _memory(row: dict[str, Any]) -> str:
    text = f"{row['peak_memory'] / _MIB:,.0f} MiB"
    if row["peak_device_memory"]:
        text += f", device {row['peak_device_memory'] / _MIB:,.0f} MiB"
    return text


def _notes(result: dict[str, Any]) -> list[str]:
    lines = [
        f"limit of training: {_limit(result):,.0f} images/s, "
        f"{result['operations_per_image'] / 1e9:,.3f} GFLOP per image at "
        f"{result['operations_per_second'] / 1e9:,.0f} GFLOP/s",
    ]
    return lines + [f"{k} left out: {v}" for k, v in result["left_out"].items()]


def _limit(result: dict[str, Any]) -> float:
    return result["operations_per_second"] / result["operations_per_image"]
