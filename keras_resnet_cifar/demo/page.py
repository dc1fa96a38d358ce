"""The page of the command `demo`: the one module that imports Gradio."""

import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from keras_resnet_cifar.demo.explorer import Explorer
from keras_resnet_cifar.errors import InputError, Stopped
from keras_resnet_cifar.evaluation.plots import plot_confusion

_REFRESH = 5  # seconds between reads of history.csv
_EXAMPLES = 10
_CLASS = "class of Grad-CAM"
# Features of Gradio that would send, keep or serve more than the page.
_MORE = "share ssr_mode pwa mcp_server run_history enable_monitoring"
_OFF: Any = dict.fromkeys(_MORE.split(), False)
_ONE: Any = {"concurrency_id": "net", "concurrency_limit": 1}  # at a time
_SHOWN: Any = {"format": "png", "interactive": False, "buttons": []}
_GALLERY = _SHOWN | {"height": "auto", "elem_classes": "shown pixels"}
# Gradio does not enlarge small pictures, and puts labels over them.
_CSS = """
.shown { padding-top: 28px !important }
.pixels img {
    image-rendering: pixelated; object-fit: contain !important;
    width: 100% !important; height: 100% !important
}
.pixels .grid-wrap { min-height: 0 !important; max-height: none !important }
.pixels .grid-container {
    grid-template-columns: repeat(auto-fill, minmax(100px, 1fr)) !important
}
.pixels .caption-label {
    font-size: 11px; padding: 1px 4px; white-space: normal; max-width: 100%
}
.curves { overflow-x: auto !important }
.curves * { justify-content: flex-start }
.curves img { min-width: 600px }
"""


def serve(explorers: Sequence[Explorer], port: int) -> None:
    """Serves a page with the nets side by side on 127.0.0.1 until Ctrl-C.

    Its address is printed. The page sends nothing to other hosts and fetches
    nothing from them.
    """
    signal.signal(signal.SIGTERM, _stop)  # else the folder would not be removed
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = f"{folder}/uploads"
        page = build(explorers, Path(folder))
        page.launch(
            server_name="127.0.0.1",
            server_port=port,
            max_file_size="50mb",
            footer_links=[],
            prevent_thread_lock=True,
            quiet=True,
            css=_CSS,
            **_OFF,
        )
        try:
            print(f"http://127.0.0.1:{port} (Ctrl-C to stop)", flush=True)
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def _stop(number, frame):
    raise Stopped(number)


def build(explorers: Sequence[Explorer], folder: Path) -> gr.Blocks:
    """Returns the page, not yet served; its plots are drawn in `folder`."""
    with gr.Blocks(title="keras_resnet_cifar", analytics_enabled=False) as page:
        with gr.Tab("Try a picture"), gr.Row():
            with gr.Column(min_width=320):
                picture = _picture(explorers[0])
            for explorer in explorers:
                with gr.Column(min_width=320):
                    _answers(explorer, picture)
        with gr.Tab("The run" if len(explorers) == 1 else "The runs"), gr.Row():
            for number, explorer in enumerate(explorers):
                with gr.Column(min_width=320):
                    _results(explorer, folder / f"{number}.png")
    return page


def _picture(explorer):
    """Adds the input for a picture, and examples; returns the input."""
    picture = gr.Image(
        label="picture: drop, paste or choose one",
        type="filepath",
        format="png",
        sources=["upload", "clipboard"],
        height=280,
        elem_id="picture",
        elem_classes="shown",
    )
    # Gradio's own opens the file, and fails without a message.
    picture.preprocess = lambda payload: payload and payload.path
    images = explorer.test.images[:_EXAMPLES]
    examples = gr.Gallery(
        list(images),
        label="or choose one of the test split",
        allow_preview=False,
        **_GALLERY,
    )

    def choose(event: gr.SelectData):
        return images[event.index]

    examples.select(choose, None, picture)
    return picture


def _answers(explorer, picture):
    """Adds a net's results for a picture."""
    names = explorer.class_names
    near = f"nearest of {len(explorer.train):,} training images (cosine)"
    gr.Markdown(f"### {explorer.name}\n{explorer.summary()}")
    hint = gr.Markdown(elem_classes="hint")
    label = gr.Label(label="most likely classes", num_top_classes=5)
    pixels = _GALLERY | {"height": 230, "min_width": 120}
    with gr.Row():
        seen = gr.Image(label="what the net sees", **pixels)
        heat = gr.Image(label="where it sees the class", **pixels)
    classes = gr.Dropdown(names, value=None, type="index", label=_CLASS)
    nearest = gr.Gallery(label=near, **_GALLERY)

    def answer(path):
        nothing = None, None, None, None, None
        if path is None:
            return "", *nothing
        try:
            found = explorer.answer(path)
        except InputError as error:
            reason = str(error).replace(path, Path(path).name)
            return f"**{reason}**", *nothing
        best = int(found.probabilities.argmax())
        return (
            found.hint,
            dict(zip(names, found.probabilities.tolist(), strict=True)),
            found.image,
            explorer.explain(found.image, best),
            names[best],
            found.nearest,
        )

    def explain(image, class_id):
        known = image is not None and class_id is not None
        return explorer.explain(image, class_id) if known else None

    outputs = [hint, label, seen, heat, classes, nearest]
    picture.change(answer, picture, outputs, **_ONE)
    classes.input(explain, [seen, classes], heat, **_ONE)


def _results(explorer, path):
    """Adds the curves of a run, its confusion matrix and its mistakes."""
    names = explorer.class_names
    gr.Markdown(f"### {explorer.name}\n{explorer.summary()}")
    if explorer.run:
        draw = partial(explorer.draw_curves, path.with_stem(f"{path.stem}-c"))
        curves = _SHOWN | {"every": _REFRESH, "elem_classes": "shown curves"}
        gr.Image(draw, label="history.csv", **curves)
    box = plot_confusion(explorer.result.confusion, names, path)
    with gr.Row():
        matrix = gr.Image(
            str(path),
            label="test images: click a cell",
            min_width=320,
            elem_classes="shown confusion",
            **_SHOWN,
        )
        with gr.Column(min_width=320):
            cell = gr.Gallery(visible=False, **_GALLERY)  # until one is clicked
            title = "most confident mistakes"
            gr.Gallery(explorer.mistakes(), label=title, **_GALLERY)

    def show(event: gr.SelectData):
        (x, y), (left, top, right, bottom) = event.index, box
        column = int((x - left) / (right - left) * len(names))
        row = int((y - top) / (bottom - top) * len(names))
        if not (0 <= column < len(names) and 0 <= row < len(names)):
            return gr.skip()
        label = f"{names[row]}, predicted {names[column]}"
        images = explorer.cell(row, column)
        return gr.Gallery(images, label=label, visible=True)

    matrix.select(show, None, cell)
