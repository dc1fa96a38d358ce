"""A benchmark's result as a table, for the screen and for documents."""

import json

from keras_resnet_cifar.errors import InputError, one_line

_MIB = 2**20
_DAMAGE = (  # what comes of JSON of another shape
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_HEAD = (
    "contender",
    "images/s",
    "ratio, median (least to most)",
    "of the limit",
    "first step, cold",
    "again",
    "memory",
)


def read(path):
    """Returns what `benchmark` found, from the JSON that was written of it.

    Raises:
        InputError: It cannot be read, or is of another kind.
    """
    try:
        found = json.loads(path.read_text())
        if not found["contenders"]:
            raise ValueError("no contender in it")
        text_of(found)
    except (OSError, *_DAMAGE) as error:
        raise InputError(
            f"{path} holds no benchmark ({one_line(error)}): name a file that "
            "--output wrote"
        ) from error
    return found


def text_of(found):
    """Returns what `benchmark` returned as aligned text."""
    table = [_HEAD, *_cells(found)]
    widths = [max(len(row[i]) for row in table) for i in range(len(_HEAD))]
    lines = []
    for name, *rest in table:
        cells = [name.ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*_about(found), *lines, *_below(found)])


def markdown_of(found):
    """Returns the same as a Markdown table with its command and machine."""
    rows = [_HEAD, ("---",) + ("---:",) * (len(_HEAD) - 1), *_cells(found)]
    table = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(
        [
            f"    {command_of(found)}",
            "",
            *_about(found),
            "",
            *table,
            "",
            *(f"- {line}" for line in _below(found)),
        ]
    )


def command_of(found):
    """Returns the command line that repeats a benchmark, on its backend."""
    setting = found["setting"]
    names = [row["name"] for row in found["contenders"]]
    names += found["left_out"]
    return (
        f"KERAS_BACKEND={found['backend']} .venv/bin/python "
        f"scripts/benchmark.py --arch {setting['arch']} --batch-size "
        f"{setting['batch_size']} --precision {setting['precision']} --steps "
        f"{setting['steps']} --rounds {setting['turns'] - 1} --contenders "
        f"{','.join(names)}"
    )


def _about(found):
    """Lines on what was run, and where."""
    setting, host = found["setting"], found["machine"]
    versions = found["versions"]
    told = ("keras", "tensorflow", "jax", "torch")
    programs = [f"{name} {versions[name]}" for name in told if name in versions]
    device = found["accelerator"]
    others = max(found["others"])
    lines = [
        f"{setting['arch']}, batch {setting['batch_size']}, "
        f"{setting['precision']}, Keras on {found['backend']} "
        f"({', '.join(programs)}); {f'{device}; ' if device else ''}"
        f"{host['processor']}, {host['cores']} cores, {host['system']}; "
        f"others used up to {others:.0%} of the cores",
    ]
    if found["busy"]:
        lines.append(
            "BUSY: the ratios are not sound either, for PyTorch's threads wait "
            "for each other at each operation and suffer most. Repeat it when "
            "it is quiet."
        )
    return lines


def _cells(found):
    """The cells of each row but the first."""
    first = {}
    for row in found["contenders"]:
        leader = first.setdefault(row["kind"], row["name"])
        ratio = found["ratios"].get(f"{leader} / {row['name']}")
        starts = row["first_step_seconds"]
        yield (
            row["name"],
            f"{row['median']:,.0f}",
            f"{leader} / this: {_spread(ratio)}" if ratio else "",
            _share(found, row),
            *(f"{s:.1f} s" if s else "" for s in starts.values()),
            _memory(row),
        )


def _spread(ratio):
    return "{median:.2f} ({least:.2f} to {most:.2f})".format(**ratio)


def _share(found, row):
    if row["kind"] != "train":
        return ""
    return f"{row['median'] / found['limit']['images_per_second']:.1%}"


def _memory(row):
    told = f"{row['peak_memory'] / _MIB:,.0f} MiB"
    if row["peak_device_memory"]:
        told += f", device {row['peak_device_memory'] / _MIB:,.0f} MiB"
    return told


def _below(found):
    """Lines on the limit, and on who was left out."""
    limit = found["limit"]
    lines = [
        f"limit of a train step: {limit['images_per_second']:,.0f} images/s, "
        f"set by {limit['bound']}: {limit['step_operations'] / 1e9:,.1f} GFLOP "
        f"at {limit['operations_per_second'] / 1e9:,.0f} GFLOP/s, "
        f"{limit['step_bytes'] / 1e9:,.2f} GB at "
        f"{limit['bytes_per_second'] / 1e9:,.0f} GB/s",
    ]
    lines += [f"{name} left out: {v}" for name, v in found["left_out"].items()]
    return lines
