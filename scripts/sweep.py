"""Runs `python -m keras_resnet_cifar sweep`."""

import sys

from keras_resnet_cifar.cli.main import main

sys.exit(main(["sweep", *sys.argv[1:]]))
