"""Runs `python -m keras_resnet_cifar finetune`."""

import sys

from keras_resnet_cifar.cli.main import main

sys.exit(main(["finetune", *sys.argv[1:]]))
