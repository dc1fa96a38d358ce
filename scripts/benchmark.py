"""The same as `python -m keras_resnet_cifar benchmark ...`."""

import sys

from keras_resnet_cifar.cli import main

sys.exit(main(["benchmark", *sys.argv[1:]]))
