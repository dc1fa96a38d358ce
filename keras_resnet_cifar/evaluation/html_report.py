"""One self-contained HTML file with the results of `evaluate`."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from keras_resnet_cifar.evaluation.metrics import described, top1_interval
from keras_resnet_cifar.files import write_text

_STYLE = """
:root { font: 16px/1.5 system-ui, sans-serif; color: #222; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h2 { margin-top: 3rem; border-bottom: 2px solid #4477aa; }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere; }
figure, .wide { margin: 1rem 0; overflow-x: auto; }
img { min-width: 30rem; max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.5rem; border-bottom: 1px solid #ddd; }
th, td { text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
td:first-child { min-width: 6.5rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) { table { font-size: 80%; } }
pre { overflow-x: auto; padding: 1rem; background: #f4f4f4; font-size: 80%; }
"""
_WHEN = ("before", "after")


@dataclass
class Page:
    """The part of a report about one model.

    `split` is in words; `metrics` is an `Evaluation` as JSON, whose pictures
    are in `folder`. `calibration` and `corruptions` are the results of
    `calibrate` and `evaluate_corruptions`. `config` is empty without a run.
    """

    model: str
    split: str
    folder: Path
    metrics: dict[str, Any]
    calibration: dict[str, Any] | None = None
    corruptions: dict[str, Any] | None = None
    config: dict[str, Any] = field(default_factory=dict)


def write_report(
    path: Path, pages: Sequence[Page], environment: Mapping[str, str]
) -> None:
    """Writes a report on models; `environment` has versions by package."""
    rows = [_summary(page) for page in pages]
    titles = max(rows, key=len, default=())  # not every model has a top-5
    summary = _table(
        titles, ([row.get(title, "") for title in titles] for row in rows)
    )
    content = "".join(_page(page) for page in pages)
    versions = _table(("package", "version"), environment.items())
    write_text(
        path,
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Evaluation</title><style>{_STYLE}</style></head>
<body><h1>Evaluation</h1>
{summary}
<p>The interval is a 95 % bootstrap interval over the images: it shows how much
the accuracy could differ on another test split of the same size. Calibration
error means the expected calibration error, the mean gap between probability and
accuracy in 15 bins.</p>
{content}
<h2>Environment of the evaluation</h2>
{versions}
</body></html>
""",
    )


def _summary(page):
    metrics = page.metrics
    low, high = top1_interval(metrics["top1"], metrics["n"])
    interval = {"95 % interval of top-1": f"{low:.2%} to {high:.2%}"}
    return {"model": page.model} | described(metrics) | interval


def _page(page):
    metrics = page.metrics
    counts = [sum(row) for row in metrics["confusion"]]
    classes = _table(
        ("class", "images", "top-1", "95 % interval"),
        (
            _class(name, top1, count)
            for (name, top1), count in zip(
                metrics["per_class"].items(), counts, strict=True
            )
        ),
    )
    parts = [
        f"<h2>{escape(page.model)}</h2>",
        f"<p>The {escape(page.split)}, {metrics['n']:,} images.</p>",
        f"<h3>Classes</h3>{classes}",
        f"<h3>Confusion</h3>{_picture(page, 'confusion')}",
    ]
    if page.calibration:
        parts += ["<h3>Calibration</h3>", _calibration(page)]
    parts += ["<h3>Most confident mistakes</h3>", _picture(page, "mistakes")]
    if page.corruptions:
        parts += ["<h3>Corruptions</h3>", _corruptions(page)]
    if page.config:
        text = escape(json.dumps(page.config, indent=2))
        text = f"<details><summary>config.json</summary><pre>{text}</pre>"
        parts += [f"<h3>Training</h3>{text}</details>"]
    return "\n".join(parts)


def _class(name, top1, count):
    if top1 is None:
        return name, count, "", ""
    low, high = top1_interval(top1, count)
    return name, f"{count:,}", f"{top1:.2%}", f"{low:.2%} to {high:.2%}"


def _calibration(page):
    values = page.calibration
    rows = [
        (name, *(f"{values[f'{key}_{when}']:.4f}" for when in _WHEN))
        for name, key in (("calibration error", "ece"), ("loss", "loss"))
    ]
    return (
        f"<p>Temperature {values['temperature']:.3f}, fitted on "
        f"{values['fitted_on']:,} validation images.</p>"
        + _table(("", *_WHEN), rows)
        + _picture(page, "reliability")
    )


def _corruptions(page):
    values = page.corruptions
    made = {"made": "made from the split", "files": "read from files"}
    rows = (
        (name.replace("_", " "), *(f"{100 * x:.1f}" for x in row))
        for name, row in values["accuracy"].items()
    )
    return (
        f"<p>Mean corruption error {values['mean_corruption_error']:.2%} "
        "over the first 15 (Hendrycks and Dietterich 2019); accuracy without a "
        f"corruption {values['clean']:.2%}. {values['images']:,} images of "
        f"each corruption and severity, {made[values['source']]}.</p>"
        + _picture(page, "corruptions")
        + "<details><summary>Accuracy in % as a table</summary>"
        + _table(("severity", 1, 2, 3, 4, 5), rows)
        + "</details>"
    )


def _picture(page, name):
    content = (page.folder / f"{name}.png").read_bytes()
    data = base64.b64encode(content).decode()
    source = f"data:image/png;base64,{data}"
    return f'<figure><img alt="{name}" src="{source}"></figure>'


def _table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    lines = [_row("th", head), *(_row("td", row) for row in rows)]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _row(tag, cells):
    cells = (f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells)
    return f"<tr>{''.join(cells)}</tr>"
