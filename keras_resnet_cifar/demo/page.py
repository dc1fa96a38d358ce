"""The page of the command `demo`: the one module that imports Gradio."""

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from keras_resnet_cifar.demo.explorer import Explorer
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation.plots import plot_confusion

_REFRESH = 5  # seconds between looks at history.csv
_EXAMPLES = 20
_CACHE = 3600, 3600  # every hour, files older than one go, and all at the end
# Whatever Gradio can send, fetch or serve beyond the page is off.
_PRIVATE: dict[str, Any] = {
    "share": False,
    "ssr_mode": False,
    "pwa": False,
    "mcp_server": False,
    "run_history": False,
    "enable_monitoring": False,
    "footer_links": [],
}
# Gradio does not enlarge small pictures, and puts labels over them.
_CSS = """
.pixels { padding-top: 28px !important }
.pixels img {
    image-rendering: pixelated; object-fit: contain !important;
    width: 100% !important; height: 100% !important
}
.pixels .grid-wrap { min-height: 0 !important; max-height: none !important }
.pixels .grid-container {
    grid-template-columns: repeat(auto-fill, minmax(90px, 1fr)) !important
}
.pixels .caption-label { font-size: 11px; padding: 1px 4px }
"""


def serve(explorers: Sequence[Explorer], port: int) -> None:
    """Serves the page on 127.0.0.1 until Ctrl-C, and prints its address.

    Nothing is sent or fetched elsewhere.

    Args:
        explorers: The nets, to be shown side by side; at least one.
        port: A free one.
    """
    with tempfile.TemporaryDirectory() as folder:
        page = build(explorers, Path(folder))
        page.launch(
            server_name="127.0.0.1",
            server_port=port,
            max_file_size="50mb",
            prevent_thread_lock=True,
            quiet=True,
            css=_CSS,
            **_PRIVATE,
        )
        try:
            print(f"http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def build(explorers: Sequence[Explorer], folder: Path) -> gr.Blocks:
    """Returns the page, not yet served; its plots are drawn in `folder`."""
    title = "keras_resnet_cifar"
    with gr.Blocks(
        title=title, analytics_enabled=False, delete_cache=_CACHE
    ) as page:
        with gr.Tab("Try a picture"), gr.Row():
            with gr.Column(min_width=320):
                picture = _picture(explorers[0])
            for explorer in explorers:
                with gr.Column(min_width=320):
                    _answers(explorer, picture)
        with gr.Tab("The run" if len(explorers) == 1 else "The runs"), gr.Row():
            for number, explorer in enumerate(explorers):
                with gr.Column(min_width=320):
                    _results(page, explorer, folder / f"{number}.png")
    return page


def _picture(explorer):
    """Adds where a picture goes, and the examples; returns the former."""
    picture = gr.Image(
        label="a picture: drop, paste or choose one",
        type="filepath",
        format="png",
        sources=["upload", "clipboard"],
        height=280,
        elem_id="picture",
    )
    # Gradio's own opens the file, and what fails there has no sentence.
    picture.preprocess = lambda payload: payload and payload.path
    images = explorer.test.images[:_EXAMPLES]
    examples = _gallery("or one of the test split", list(images), False)

    def choose(event: gr.SelectData):
        return images[event.index]

    examples.select(choose, None, picture)
    return picture


def _answers(explorer, picture):
    """Adds what a net says of a picture."""
    names = explorer.class_names
    gr.Markdown(f"### {explorer.name}\n{explorer.summary()}")
    hint = gr.Markdown(elem_classes="hint")
    label = gr.Label(label="the likeliest classes", num_top_classes=5)
    with gr.Row():
        seen = _pixels("what the net sees")
        heat = _pixels("where it sees the class")
    classes = gr.Dropdown(
        names, value=None, type="index", label="class of Grad-CAM"
    )
    count = len(explorer.train)
    nearest = _gallery(f"nearest of {count:,} training images (cosine)")

    def answer(path):
        nothing = None, None, None, gr.Dropdown(value=None), None
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
            gr.Dropdown(value=names[best]),
            found.nearest,
        )

    def explain(image, class_id):
        known = image is not None and class_id is not None
        return explorer.explain(image, class_id) if known else None

    # One prediction at a time.
    one: Any = {"concurrency_id": "net", "concurrency_limit": 1}
    outputs = [hint, label, seen, heat, classes, nearest]
    picture.change(answer, picture, outputs, **one)
    classes.input(explain, [seen, classes], heat, **one)


def _results(page, explorer, path):
    """Adds the curves of a run, its confusion matrix and its mistakes."""
    gr.Markdown(f"### {explorer.name}\n{explorer.summary()}")
    if explorer.history_time():
        _curves(page, explorer, path.with_stem(f"{path.stem}-curves"))
    left, top, right, bottom = plot_confusion(
        explorer.result.confusion, explorer.class_names, path
    )
    with gr.Row():
        confusion = gr.Image(
            str(path),
            label="test images: click a cell",
            interactive=False,
            buttons=["fullscreen"],
            min_width=320,
            elem_classes="confusion",
        )
        with gr.Column(min_width=320):
            cell = _gallery("images of the cell")
            _gallery("most confident mistakes", explorer.mistakes())

    def show(event: gr.SelectData):
        count = len(explorer.class_names)
        column = int((event.index[0] - left) / (right - left) * count)
        row = int((event.index[1] - top) / (bottom - top) * count)
        if not (0 <= column < count and 0 <= row < count):
            return gr.skip()
        true, guess = explorer.class_names[row], explorer.class_names[column]
        title = f"{true}, predicted {guess}"
        return gr.Gallery(explorer.cell(row, column), label=title)

    confusion.select(show, None, cell)


def _curves(page, explorer, path):
    """Adds the curves of a run, drawn again whenever history.csv changes."""
    curves = gr.Image(
        label="history.csv",
        interactive=False,
        buttons=["fullscreen"],
        elem_classes="curves",
    )
    drawn = gr.State(0.0)

    def draw(last):
        now = explorer.history_time()
        if now in (0.0, last):
            return gr.skip(), last
        explorer.draw_curves(path)
        return str(path), now

    hidden: Any = {"show_progress": "hidden"}
    page.load(draw, drawn, [curves, drawn], **hidden)
    gr.Timer(_REFRESH).tick(draw, drawn, [curves, drawn], **hidden)


def _pixels(label):
    return gr.Image(
        label=label,
        interactive=False,
        format="png",
        height=230,
        min_width=120,
        buttons=[],
        elem_classes="pixels",
    )


def _gallery(label, images=None, preview=True):
    return gr.Gallery(
        images,
        label=label,
        format="png",
        interactive=False,
        allow_preview=preview,
        buttons=[],
        height="auto",
        elem_classes="pixels",
    )
