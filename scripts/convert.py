"""Runs `python -m keras_resnet_cifar convert`."""

import sys

from keras_resnet_cifar.cli.main import main

sys.exit(main(["convert", *sys.argv[1:]]))
