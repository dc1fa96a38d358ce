"""Runs `python -m keras_resnet_cifar train`."""

import sys

from keras_resnet_cifar.cli.main import main

sys.exit(main(["train", *sys.argv[1:]]))
