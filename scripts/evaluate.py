"""Runs `python -m keras_resnet_cifar evaluate`."""

import sys

from keras_resnet_cifar.cli.main import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
