"""JAX and PyTorch need neither TensorFlow nor tensorflow-datasets."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

# No finder knows a blocked package, as if it were not installed: PyTorch and
# others ask whether they could import it.
BLOCKED = """
import sys
BLOCKED = {"tensorflow", "tensorflow_datasets", "keras_cv"}
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in BLOCKED:
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
folder, out = sys.argv[1:]
"""
LIBRARY = """
import keras_resnet_cifar as krc
data = krc.load_dataset("cifar10", folder, allow_unverified=True)
model = krc.build_resnet(depth=8, widths=(4, 4, 4), normalization="cifar10")
run = krc.train(model, data, "strong", out, epochs=1, batch_size=128)
krc.evaluate(run.model, data.test, data.class_names)
assert not BLOCKED & set(sys.modules)
"""
COMMANDS = """
from keras_resnet_cifar.cli.main import main
data = ["--data-dir", folder, "--allow-unverified"]
assert not main(["train", "--arch", "resnet8", "--dataset", "cifar10", *data,
                 "--epochs", "1", "--batch-size", "128", "--output-dir", out])
assert not main(["evaluate", out])
assert not BLOCKED & set(sys.modules)
"""


@pytest.mark.parametrize(
    ("backend", "code"),
    [
        pytest.param("torch", LIBRARY, id="torch library"),
        pytest.param("jax", LIBRARY, marks=pytest.mark.slow, id="jax library"),
        pytest.param("torch", COMMANDS, marks=pytest.mark.slow, id="torch"),
        pytest.param("jax", COMMANDS, marks=pytest.mark.slow, id="jax"),
    ],
)
def test_load_build_train_evaluate(backend, code, tiny_cifar, tmp_path):
    if not find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    subprocess.run(
        [sys.executable, "-c", BLOCKED + code, tiny_cifar, tmp_path / "run"],
        check=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_importing_the_package_imports_no_heavy_module():
    code = (
        "import sys, keras_resnet_cifar as krc; dir(krc); "
        "heavy = {'keras', 'tensorflow', 'jax', 'torch', 'matplotlib', "
        "'tensorflow_datasets', 'keras_cv', 'PIL', 'pyarrow'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
