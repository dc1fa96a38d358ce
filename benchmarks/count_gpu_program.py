"""Counts what a GPU would run in each train step, compiled without a GPU.

    python -m venv gpu
    gpu/bin/pip install jax==0.10.2 jax-cuda12-plugin==0.10.2 keras==3.15.1 \
        jax-cuda12-pjrt==0.10.2 numpy matplotlib pillow lazy-loader
    gpu/bin/pip install --no-deps -e .
    gpu/bin/python -m benchmarks.count_gpu_program --recipe cosine

The two wheels of CUDA's compiler (180 MB) must have the version of jax. JAX
compiles the loop of `fit` for an NVIDIA H100, described in h100.txtpb, and XLA
dumps the resulting program. **The results are counts, not times**: no step
runs. cuDNN chooses its algorithms and their memory on a real GPU only.
"""

import argparse
import math
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from keras_resnet_cifar.cli.main import run as run_command
from keras_resnet_cifar.cli.main import script_parser
from keras_resnet_cifar.models.architectures import resolve
from keras_resnet_cifar.training.recipes import get_recipe

_H100 = Path(__file__).with_name("h100.txtpb")
_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "u8": 1, "pred": 1}
_IMAGES = 50_000  # of the resident split


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = script_parser(run)
    option = parser.add_argument
    option("--arch", default="resnet20", help="the net (default: resnet20)")
    option("--recipe", default="cosine", help="recipe (default: cosine)")
    size = "images per step (default: 128)"
    option("--batch-size", type=int, default=128, help=size)
    precision = "dtype policy (default: mixed_bfloat16)"
    option("--precision", default="mixed_bfloat16", help=precision)
    return run_command(parser, arguments)


def run(args: argparse.Namespace) -> None:
    """Count what a GPU would run in each train step, without a GPU."""
    resolve(args.arch)
    changes = {"batch_size": args.batch_size, "precision": args.precision}
    get_recipe(args.recipe, **changes)
    counts = count_program(args.arch, args.recipe, **changes)
    setting = args.arch, args.recipe, args.batch_size, args.precision
    print(", ".join(map(str, setting)), "for an H100; per step:")
    for name, count in counts.items():
        print(f"{count:6,}  {name}")


def count_program(
    arch: str, recipe: str, batch_size: int, precision: str
) -> dict[str, int]:
    """Compiles the train steps of a recipe for an H100, and counts.

    Call it before Keras or JAX is imported.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KERAS_BACKEND"] = "jax"
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
        os.environ["XLA_FLAGS"] = (
            f"--xla_dump_to={folder} --xla_dump_hlo_as_text "
            "--xla_dump_hlo_module_re=jit_run_steps "
            f"{os.environ.get('XLA_FLAGS', '')}"
        )
        _compile(arch, recipe, batch_size, precision)

        def dump(name):
            (path,) = Path(folder).glob(f"*jit_run_steps.{name}.txt")
            return path.read_text()

        return {
            "launches by the host": count_launches(
                dump("thunk_sequence_after_thunk_passes")
            ),
            **count_kernels(dump("thunk_sequence")),
            "MB read and written": count_bytes(
                dump("*gpu_after_optimizations"), f"u8[{_IMAGES},"
            )
            // 10**6,
        }


def _compile(arch, recipe, batch_size, precision):
    import jax
    import numpy as np
    from jax.experimental import topologies

    from keras_resnet_cifar import device

    # The package makes the same choices as on a GPU.
    jax.default_backend = lambda: "gpu"
    device.accelerator_name = lambda: "H100"

    from keras_resnet_cifar.data.batches import ShuffledBatches
    from keras_resnet_cifar.models.resnet import build_resnet
    from keras_resnet_cifar.training import jax_steps
    from keras_resnet_cifar.training.compilation import compile_for_training
    from keras_resnet_cifar.training.inputs import as_dataset

    model = build_resnet(arch)
    shape = (_IMAGES, 32, 32, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    data = as_dataset(model, (images, np.arange(_IMAGES) % 10))
    chosen = get_recipe(recipe, batch_size=batch_size, precision=precision)
    feed = ShuffledBatches(data.train, data.num_classes, batch_size, seed=0)
    trained = compile_for_training(model, data, chosen, precision, 0, feed)

    topology = topologies.get_topology_desc(
        platform="cuda",
        topology_name="h100",
        target_config=_H100.read_text(),
        topology="1x1x1",
    )
    mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("x",))
    on_gpu = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def shapes(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_gpu),
            tree,
        )

    state = trained._get_jax_state(
        trainable_variables=True,
        non_trainable_variables=True,
        optimizer_variables=True,
        metrics_variables=True,
    )
    batches = feed.source(trained.fused_steps)[0]
    run = jax_steps.compiled(trained.train_step)
    traced = run.trace(shapes(state), shapes(batches))
    traced.lower(lowering_platforms=("cuda",)).compile()


def count_launches(thunks: str) -> int:
    """Returns the thunks of the loop's body; a command buffer is one."""
    return len(re.findall(r"^ {4}\d+: k", _body(thunks), re.M))


def count_kernels(thunks: str) -> dict[str, int]:
    """Returns the kernels and the inner loops of the loop's body."""
    kinds = re.findall(r"^ *\d+: k(\w+)", _body(thunks), re.M)
    loops = kinds.count("While")
    return {
        "kernels and library calls": len(kinds) - loops,
        "loops of unknown length": loops,
    }


def _body(thunks):
    """Returns the lines of the body of the first loop."""
    lines = thunks[thunks.index("  body:\n") :]
    return re.split(r"^\d", lines, maxsplit=1, flags=re.M)[0]


def count_bytes(hlo: str, resident: str) -> int:
    """Returns the bytes that the kernels of the loop's body read and write.

    `hlo` is the program after all optimizations. The shape of the resident
    images starts with `resident`; they are not counted, because a step reads
    only one batch of them.
    """
    entry = hlo[hlo.index("\nENTRY ") :]
    (name,) = set(re.findall(r"body=%([\w.\-]+)", entry))
    body = re.search(rf"\n%{re.escape(name)} \(.*?\n}}", hlo, re.S)
    assert body
    instruction = r"^ *(?:ROOT )?%(\S+) = (.*?) ([\w\-]+)\((.*?)\)(?:,|$)"
    sizes: dict[str, list[int]] = {}  # of an array, or of a tuple's elements
    total = 0
    for result, shape, kind, operands in re.findall(instruction, body[0], re.M):
        sizes[result] = _sizes(shape, resident)
        if kind in ("fusion", "custom-call", "copy"):
            total += sum(sizes[result])
            for operand, element in re.findall(
                r"%([\w.\-]+)(?:#(\d+))?", operands
            ):
                read = sizes.get(operand, [0])
                total += read[int(element)] if element else sum(read)
    return total


def _sizes(shape, resident):
    """Returns the bytes of each array in a shape; the resident ones have 0."""
    sizes = []
    for kind, sides in re.findall(r"\b(\w+)\[([\d,]*)\]", shape):
        elements = math.prod(map(int, filter(None, sides.split(","))))
        counted = not f"{kind}[{sides}".startswith(resident)
        sizes.append(counted * elements * _BYTES.get(kind, 0))
    return sizes


if __name__ == "__main__":
    sys.exit(main())
