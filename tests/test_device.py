"""What is chosen for the machine at hand."""

import os
import subprocess
import sys

import keras
import pytest

from keras_resnet_cifar import device as hardware
from keras_resnet_cifar.device import (
    _cpu_multiplies_bfloat16,
    resolve_precision,
    steps_per_execution,
)


def test_auto_precision_asks_the_processor(tmp_path):
    assert resolve_precision("float32") == "float32"
    assert resolve_precision("auto") in ("float32", "mixed_bfloat16")
    for flags, multiplies in (("avx512_bf16", True), ("avx2", False)):
        (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags} sse\n")
        assert _cpu_multiplies_bfloat16(tmp_path / "cpuinfo") is multiplies
    assert not _cpu_multiplies_bfloat16(tmp_path / "none")


def test_a_call_on_a_cpu_lasts_a_second_at_most(monkeypatch):
    backend = keras.backend.backend()
    monkeypatch.setattr(hardware, "has_accelerator", lambda: False)
    tiny, resnet20, resnet1202 = 1e6, 31e9, 1.9e12
    expected = {"tensorflow": (64, 8, 1), "jax": (64, 1, 1)}
    counts = tuple(
        steps_per_execution(cost, 64) for cost in (tiny, resnet20, resnet1202)
    )
    assert counts == expected.get(backend, (1, 1, 1))
    assert steps_per_execution(float("inf"), 64) == 1  # of unknown images
    assert all(isinstance(count, int) for count in counts)
    monkeypatch.setattr(hardware, "has_accelerator", lambda: True)
    on_torch = backend == "torch"
    assert steps_per_execution(resnet20, 64) == (1 if on_torch else 64)
    assert steps_per_execution(resnet1202, 64) == (1 if on_torch else 8)


def test_an_epoch_is_one_call_on_an_accelerator(monkeypatch):
    """Where it lasts two seconds at most, and waits for no batches."""
    if keras.backend.backend() == "torch":
        pytest.skip("PyTorch runs step by step")
    monkeypatch.setattr(hardware, "has_accelerator", lambda: True)
    resnet20, resnet110 = 31e9, 196e9
    assert steps_per_execution(resnet20, 390, True) == 390
    assert steps_per_execution(resnet20, 390, False) == 39
    assert steps_per_execution(resnet110, 390, True) == 78
    assert steps_per_execution(1e6, 10_000, True) == 2500


@pytest.mark.parametrize(
    ("steps", "count"), [(390, 39), (128, 64), (391, 64), (33, 33), (7, 7)]
)
def test_calls_divide_an_epoch_if_they_can(steps, count):
    if keras.backend.backend() == "torch":
        pytest.skip("PyTorch runs step by step")
    assert steps_per_execution(1e6, steps) == count


def test_convolutions_join_cuda_graphs_on_a_gpu_alone(monkeypatch):
    if keras.backend.backend() != "jax":
        pytest.skip("JAX alone: KERAS_BACKEND=jax")
    import jax

    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=true")
    assert hardware.compiler_options() == {}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    (name, commands), *others = hardware.compiler_options().items()
    assert "CONVOLUTION" in commands.split(",")
    assert not others
    monkeypatch.setenv("XLA_FLAGS", f"--{name}=FUSION")
    assert hardware.compiler_options() == {}


def test_cudnn_starts_before_a_cuda_graph(monkeypatch):
    if keras.backend.backend() != "jax":
        pytest.skip("JAX alone: KERAS_BACKEND=jax")
    import jax

    from keras_resnet_cifar.training import jax_steps

    devices = jax.local_devices()
    convolutions, conv = [], jax.lax.conv
    monkeypatch.setattr(
        jax.lax, "conv", lambda *a: convolutions.append(conv(*a)) or conv(*a)
    )
    jax_steps.compiled(lambda state, batch: (state, batch))
    assert not convolutions
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax_steps.compiled(lambda state, batch: (state, batch))
    assert [y.devices() for y in convolutions] == [{d} for d in devices]


COMPILING = """
import sys, warnings
if sys.argv[1] == "without":
    sys.modules["filelock"] = None
warnings.simplefilter("error")
from keras_resnet_cifar.device import cache_compilations
cache_compilations()
import jax
jax.jit(lambda x: x * 2)(1.0)
"""


@pytest.mark.parametrize("filelock", ["with", "without"])
def test_compilations_are_kept(filelock, tmp_path):
    """JAX wants filelock for a limit, and else kept nothing."""
    if keras.backend.backend() != "jax":
        pytest.skip("JAX alone: KERAS_BACKEND=jax")
    if filelock == "with":
        pytest.importorskip("filelock")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    subprocess.run(
        [sys.executable, "-c", COMPILING, filelock],
        check=True,
        env={**kept, "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert any((tmp_path / "keras_resnet_cifar" / "jax").iterdir())
