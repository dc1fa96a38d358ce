"""The page in a real browser: Debian's Chromium, driven by Playwright."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from PIL import Image

from keras_resnet_cifar.data import shapes
from keras_resnet_cifar.data.datasets import DATASETS

pytestmark = pytest.mark.slow

COMMAND = (sys.executable, "-m", "keras_resnet_cifar")
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, or a skip that says what is missing."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed"
    )
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # root, as in a container, has no sandbox
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def run(tiny_cifar, tmp_path):
    """A run that starts from weights which know the images."""
    options = ["--arch", "resnet8", "--weights", "shapes", "--dataset"]
    options += ["cifar10", "--data-dir", tiny_cifar, "--allow-unverified"]
    options += ["--epochs", "2", "--learning-rate", "1e-9"]
    options += ["--validation", "56", "--output-dir", tmp_path / "run"]
    subprocess.run([*COMMAND, "train", *options], check=True)
    return tmp_path / "run"


@contextmanager
def served(model, folder):
    """Serves the page of a model, uploads in a folder; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [*COMMAND, "demo", str(model), "--port", port]
    environment = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            for line in server.stdout:
                if line.startswith("http://"):
                    break
            yield line.split()[0]
        finally:
            server.terminate()
    assert server.returncode == 128 + signal.SIGTERM
    left = [path for path in folder.rglob("*") if path.is_file()]
    assert not left, "uploads stay behind"


def test_the_page(browser, run, tmp_path):
    from playwright.sync_api import expect

    names = DATASETS["cifar10"].class_names
    images, (label,) = shapes.draw(1, seed=7)
    known, other = names[label], names[(label + 1) % 10]
    Image.fromarray(images[0]).resize((300, 200)).save(tmp_path / "drop.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "uploads").mkdir()
    with served(run, tmp_path / "uploads") as address:
        page = browser.new_page(viewport={"width": 400, "height": 900})
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        errors, hosts = [], set()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console",
            lambda line: line.type == "error" and errors.append(line.text),
        )
        page.on("request", lambda r: hosts.add(urlsplit(r.url).hostname))
        page.goto(address)

        top = page.get_by_test_id("label-output-value")
        drop(page, tmp_path / "drop.png")
        expect(top).to_have_text(known)
        hint = page.locator(".prose.hint")
        expect(hint).to_contain_text("of the validation images")

        heat = block(page, "where it sees the class").locator("img")
        before = heat.get_attribute("src")
        page.get_by_label("class of Grad-CAM").click()
        page.get_by_role("option", name=other).click()
        expect(heat).not_to_have_attribute("src", before)
        expect(top).to_have_text(known)

        page.locator("#picture").get_by_label("Remove Image").click()
        drop(page, tmp_path / "text.png")
        expect(hint).to_contain_text("cannot read text.png as an image")
        page.locator("#picture").get_by_label("Remove Image").click()
        page.get_by_label("Thumbnail 1 of 10").first.click()
        expect(top).to_have_text(re.compile("|".join(names)))

        page.get_by_role("tab", name="The run").click()
        curves = block(page, "history.csv").locator("img")
        expect(curves).to_be_visible()
        before = curves.get_attribute("src")
        history = (run / "history.csv").read_text()
        row = history.splitlines()[-1].replace("2,", "3,", 1)
        (run / "history.csv").write_text(f"{history}{row}\n")
        expect(curves).not_to_have_attribute("src", before)

        matrix = page.locator(".confusion img")
        box = matrix.bounding_box()
        # The cell in the upper left corner is right of the names.
        corner = {"x": 0.2 * box["width"], "y": 0.05 * box["height"]}
        matrix.click(position=corner)
        cell = block(page, f"{names[0]}, predicted {names[0]}")
        expect(cell.locator("img").first).to_be_visible()
        assert not errors
        assert hosts == {"127.0.0.1"}


def block(page, label):
    """The part of the page with a label."""
    return page.locator(".block", has=page.get_by_text(label, exact=True))


def drop(page, path):
    """Drops a file on the picture, as a hand would."""
    content = list(path.read_bytes())
    transfer = page.evaluate_handle(
        """([content, name]) => {
            const transfer = new DataTransfer();
            const bytes = new Uint8Array(content);
            transfer.items.add(new File([bytes], name, {type: "image/png"}));
            return transfer;
        }""",
        [content, path.name],
    )
    target = page.locator("#picture button").first
    target.dispatch_event("drop", {"dataTransfer": transfer})
