"""Runs `python -m keras_resnet_cifar predict`."""

import sys

from keras_resnet_cifar.cli.main import main

sys.exit(main(["predict", *sys.argv[1:]]))
