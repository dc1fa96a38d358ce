"""Names: the rule, the table, what is settled, and what is near."""

import pytest

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.models.architectures import (
    ARCHITECTURES,
    FOUR_STAGE_WIDTHS,
    THREE_STAGE_WIDTHS,
    list_architectures,
    resolve,
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_name_of_the_table_means_itself(name):
    assert resolve(name).name == name


@pytest.mark.parametrize(
    ("name", "block", "stage_blocks", "widths", "shortcut"),
    [
        ("resnet20", "basic", (3, 3, 3), THREE_STAGE_WIDTHS, "identity"),
        ("resnet26", "basic", (4, 4, 4), THREE_STAGE_WIDTHS, "identity"),
        ("resnet164", "basic", (27, 27, 27), THREE_STAGE_WIDTHS, "identity"),
        ("resnet20-conv3x3", "basic", (3, 3, 3), THREE_STAGE_WIDTHS, "conv3x3"),
        ("resnet20-preact", "basic", (3, 3, 3), (16, 32, 64), "projection"),
        (
            "resnet29-bottleneck",
            "bottleneck",
            (3, 3, 3),
            THREE_STAGE_WIDTHS,
            "projection",
        ),
        ("resnet18", "basic", (2, 2, 2, 2), FOUR_STAGE_WIDTHS, "projection"),
        (
            "resnet50",
            "bottleneck",
            (3, 4, 6, 3),
            FOUR_STAGE_WIDTHS,
            "projection",
        ),
        (
            "resnet101-bottleneck",
            "bottleneck",
            (11, 11, 11),
            THREE_STAGE_WIDTHS,
            "projection",
        ),
    ],
)
def test_the_rule(name, block, stage_blocks, widths, shortcut):
    arch = resolve(name)
    assert arch.block == block
    assert arch.stage_blocks == stage_blocks
    assert arch.widths == widths
    assert arch.shortcut == shortcut
    assert arch.name == name


@pytest.mark.parametrize(
    ("given", "stage_blocks"),
    [
        ({"depth": 50}, (3, 4, 6, 3)),
        ({"depth": 50, "block": "bottleneck"}, (3, 4, 6, 3)),
        ({"depth": 50, "block": "basic"}, (8, 8, 8)),
        ({"depth": 101, "block": "bottleneck"}, (3, 4, 23, 3)),
        (
            {"depth": 101, "block": "bottleneck", "widths": (16, 32, 64)},
            (11, 11, 11),
        ),
        ({"depth": 20, "widths": (32, 64, 128)}, (3, 3, 3)),
        ({"stage_blocks": (1, 2), "widths": (8, 16)}, (1, 2)),
    ],
)
def test_where_a_depth_could_mean_two_nets(given, stage_blocks):
    assert resolve(**given).stage_blocks == stage_blocks


def test_blocks_replace_the_depth_of_a_name():
    arch = resolve("resnet18", stage_blocks=[1, 1, 1, 1])
    assert (arch.depth, arch.widths) == (10, FOUR_STAGE_WIDTHS)


def test_arguments_replace_what_a_name_says():
    assert resolve("resnet20", shortcut="projection") == resolve(
        "resnet20-projection"
    )


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet21", ("resnet20", "resnet26", "resnet18", "6n+2")),
        ("resnet21-bottleneck", ("resnet20-bottleneck", "9n+2")),
        ("resnet1001", ("resnet1001-bottleneck",)),
        ("resnet3", ("resnet8",)),
        ("resnet20-botleneck", ("did you mean bottleneck?",)),
        ("resnet20-conv3x3-projection", ("-projection contradicts another",)),
        ("resnt20", ("resnet20",)),
        ("vgg16", ("resnet20", "resnet{depth}")),
    ],
)
def test_a_wrong_name_says_what_is_near(name, near):
    with pytest.raises(InputError) as error:
        resolve(name)
    for word in near:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, "no net named"),
        ({"name": "resnet20", "depth": 20}, "omit depth=20"),
        ({"depth": 20, "block": "wide"}, "bottleneck"),
        ({"depth": 20, "shortcut": "none"}, "identity"),
        ({"depth": 20, "stem": "mnist"}, "imagenet"),
        ({"depth": 20, "stage_blocks": (2, 2, 2)}, "14"),
        ({"stage_blocks": (2, 2), "widths": (8, 16, 32)}, "length"),
        ({"stage_blocks": (2, 0, 2)}, "positive"),
        ({"depth": 20, "widths": (8, 16)}, "stage_blocks"),
        ({"depth": 20.0}, "whole number"),
        ({"depth": 20, "stem_width": 8.5}, "whole number"),
        ({"depth": 20, "stem_width": 0}, "1 or more"),
        ({"depth": 20, "stem_width": 32}, "narrower"),
        ({"depth": 20, "widths": 16}, "positive"),
        ({"depth": 20, "widths": (64, 32, 16)}, "narrower"),
        ({"depth": 20, "preactivation": "no"}, "True or False"),
        ({"depth": -4}, "resnet8"),
        ({"name": "resnet18", "widths": (8, 16, 32)}, "resnet14, resnet20;"),
        ({"depth": 20, "final_norm": False}, "pre-activation"),
    ],
)
def test_descriptions_that_disagree(given, word):
    with pytest.raises(InputError, match=word):
        resolve(**given)


def test_the_list_is_the_table():
    rows = list_architectures()
    assert [row["name"] for row in rows] == list(ARCHITECTURES)
    assert set(rows[0]) == {"name", "depth", "block", "parameters", "source"}
