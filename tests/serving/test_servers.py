"""Exported models behind real model servers, each in its own environment."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import serving
from keras_resnet_cifar.data import shapes
from keras_resnet_cifar.data.datasets import DATASETS

pytestmark = pytest.mark.slow

PACKAGES = {
    "kserve": ["kserve==0.21.0", "onnxruntime", "pillow"],
    "triton": ["nvidia-pytriton==0.7.0", "onnxruntime", "pillow"],
}
BAD = [
    {"instances": [[1, 2], [3]]},
    {"instances": [{"b64": "no picture"}]},
    {"instances": [np.full((32, 32, 3), 300).tolist()]},
    {"instances": [np.zeros((16, 16, 3), int).tolist()]},
    {},
    b"\0" * 10_000_000,
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """ResNet-8 for shapes as ONNX, and what Keras says of some images."""
    pytest.importorskip("tf2onnx", reason="the models are ONNX")
    import keras

    import keras_resnet_cifar as krc
    from keras_resnet_cifar.evaluation.metrics import softmax

    folder = tmp_path_factory.mktemp("exported")
    model = krc.build_resnet("resnet8", weights="shapes")
    model.save(folder / "shapes.keras")
    data = krc.load_dataset("shapes")
    krc.export_model(
        folder / "shapes.keras", folder, "onnx", data=data, images=64
    )
    images, _ = shapes.draw(64, seed=2)
    keras.backend.clear_session()
    return folder / "onnx", images, softmax(krc.logits_of(model, images))


@pytest.fixture(scope="module", params=serving.SERVERS)
def server(request, exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet"]
    result = subprocess.run(
        [*install, *PACKAGES[request.param]], capture_output=True, text=True
    )
    if result.returncode:
        pytest.skip(f"cannot install {request.param}: {result.stderr[-200:]}")
    log = folder / "log"
    with serving.running(request.param, python, exported[0], log) as running:
        running.name = request.param
        yield running


def test_its_probabilities_are_those_of_keras(server, exported):
    _, images, expected = exported
    np.testing.assert_allclose(server.infer(images), expected, atol=1e-5)


def test_both_forms_of_v1_requests(server, exported):
    if server.name != "kserve":
        pytest.skip("Triton speaks V2 only")
    _, images, expected = exported
    names = DATASETS["shapes"].class_names
    instances = [images[0].tolist(), serving.file_instance(images[1])]
    status, answer = server.post(serving.PREDICT, {"instances": instances})
    assert status == 200
    for row, probabilities in zip(
        answer["predictions"], expected, strict=False
    ):
        np.testing.assert_allclose(
            row["probabilities"], probabilities, atol=1e-5
        )
        assert row["class_id"] == probabilities.argmax()
        assert row["label"] == names[row["class_id"]]


def test_a_picture_of_another_size(server, exported):
    if server.name != "kserve":
        pytest.skip("Triton takes arrays only")
    large = np.repeat(np.repeat(exported[1][0], 8, 0), 8, 1)
    instances = [serving.file_instance(large)]
    status, answer = server.post(serving.PREDICT, {"instances": instances})
    assert status == 200
    assert answer["predictions"][0]["class_id"] == exported[2][0].argmax()


def test_bad_requests_are_refused_and_the_server_lives(server, exported):
    _, images, _ = exported
    for body in BAD:
        for path in (serving.PREDICT, serving.INFER):
            status, _ = server.post(path, body)
            assert 400 <= status < 600
    assert server.infer(images[:1]).shape == (1, 10)


def test_a_new_version_under_load_fails_no_request(server, exported):
    folder, images, _ = exported
    result = serving.hold(server, images, folder, clients=16, seconds=6)
    assert result["failed"] == 0
    assert result["requests"] > 16
    newest = max(int(path.name) for path in Path(folder).glob("[0-9]*"))
    assert newest >= 2
