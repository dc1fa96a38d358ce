"""Runs `python -m keras_resnet_cifar demo`."""

import sys

from keras_resnet_cifar.cli.main import main

sys.exit(main(["demo", *sys.argv[1:]]))
