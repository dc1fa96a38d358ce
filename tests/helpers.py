"""Small nets and checks that several tests share."""

import pytest

from keras_resnet_cifar.errors import InputError

TINY = {"depth": 8, "widths": (4, 8, 16)}  # compiles in a second or two


def refusal(action, *arguments):
    """The one line with which something is refused."""
    with pytest.raises(InputError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)
