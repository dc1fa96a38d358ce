"""Runs `python -m keras_resnet_cifar COMMAND`; see `cli.main`."""

import sys

from keras_resnet_cifar.cli.main import main

sys.exit(main())
