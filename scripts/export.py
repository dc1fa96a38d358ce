"""Runs `python -m keras_resnet_cifar export`."""

import sys

from keras_resnet_cifar.cli.main import main

sys.exit(main(["export", *sys.argv[1:]]))
