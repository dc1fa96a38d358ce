"""CIFAR ResNets in Keras 3.

    import keras_resnet_cifar as krc

    data = krc.load_dataset("cifar10", validation=5000)
    model = krc.build_resnet("resnet20", num_classes=10)
    run = krc.train(model, data, recipe="paper", output_dir="runs/r20")

The public names are listed in `__init__.pyi`. Each is imported when it is first
used, so importing the package and starting the command line are fast.
"""

import importlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version

import lazy_loader

# TensorFlow reads this once; what it logs before that is still printed.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

if "keras" in sys.modules:
    # Keras loads only files whose layers, optimizers and schedules are known.
    for _module in ("data.augmentation", "training.muon", "training.schedules"):
        importlib.import_module(f"{__name__}.{_module}")

try:
    __version__ = version("keras_resnet_cifar")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"
