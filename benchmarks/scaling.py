"""Estimates (does not measure) how data parallelism scales.

    KERAS_BACKEND=jax python -m benchmarks.scaling

prints the table of docs/scale.md. A step on N devices takes

    operations / (N * RATE) + norms * LAYER
    + 2 (N - 1) / N * bytes / BANDWIDTH + collectives * LATENCY

seconds. The terms are the net's operations, divided equally; the launches and
short kernels of each layer, counted by its BatchNorm; sending the float32
gradients around a ring; and the latency of each collective. There is one
collective for the gradients and two for each BatchNorm, as in the step that
tests/training/test_data_parallel.py compiles. Those of BatchNorm cannot be
combined, since each layer waits for the previous one. Nothing overlaps.
"""

import math

RATE = 100e12  # operations per second that convolutions reach on one device
# Seconds per BatchNorm: a step of ResNet-20 takes 1.4 ms, as on an NVIDIA H200.
LAYER = 58e-6
HOST = 8  # devices of one host
BANDWIDTH = {True: 200e9, False: 25e9}  # bytes per second: one host, several
LATENCY = {True: 20e-6, False: 50e-6}  # seconds
DEVICES = (1, 8, 64)
NETS = (  # net, side of the images, classes, images per device
    ("resnet20", 32, 10, 128),
    ("resnet110", 32, 10, 128),
    ("resnet50-imagenet", 224, 1000, 64),
)


def seconds(
    operations: float, parameters: int, norms: int, devices: int
) -> float:
    """Returns the seconds of a step.

    `operations` are those of the whole batch, as from `step_operations`;
    `norms` is the number of BatchNorm layers.
    """
    compute = operations / (devices * RATE) + norms * LAYER
    if devices == 1:
        return compute
    near = devices <= HOST
    ring = 2 * (devices - 1) / devices * 4 * parameters / BANDWIDTH[near]
    return compute + ring + (2 * norms + 1) * LATENCY[near]


def main() -> None:
    import keras

    from keras_resnet_cifar.models.nets import leaf_layers
    from keras_resnet_cifar.models.operations import step_operations
    from keras_resnet_cifar.models.resnet import build_resnet

    print(
        "| net | parameters | images per device | collectives | devices "
        "| MB sent by each | same share: ms, efficiency "
        "| same batch: ms, efficiency |"
    )
    print("| --- |" + " ---: |" * 7)
    for arch, side, classes, share in NETS:
        model = build_resnet(
            arch, num_classes=classes, input_shape=(side, side, 3)
        )
        parameters = sum(math.prod(w.shape) for w in model.trainable_weights)
        norms = sum(
            isinstance(layer, keras.layers.BatchNormalization)
            for layer in leaf_layers(model)
        )
        one = seconds(step_operations(model, share), parameters, norms, 1)
        for devices in DEVICES:
            weak, strong = (
                seconds(step_operations(model, n), parameters, norms, devices)
                for n in (share * devices, share)
            )
            sent = 2 * (devices - 1) / devices * 4 * parameters / 1e6
            print(
                f"| {arch} | {parameters:,} | {share} "
                f"| {(2 * norms + 1) * (devices > 1)} | {devices} "
                f"| {sent:.1f} | {weak * 1e3:.2f}, {one / weak:.0%} "
                f"| {strong * 1e3:.2f}, {one / strong / devices:.1%} |"
            )


if __name__ == "__main__":
    main()
