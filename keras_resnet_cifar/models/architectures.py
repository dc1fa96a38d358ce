"""Names of architectures: the rule, the table and suggestions for typos.

A name is `resnet{depth}`, followed by any of the suffixes

    -bottleneck                 three stages of bottleneck blocks, depth 9n+2
    -preact                     full pre-activation (He et al. 2016)
    -identity, -projection, -conv3x3
                                the shortcut where the shape changes
    -imagenet                   7x7 stride-2 stem and max pooling

A bare depth of 18, 34, 50, 101 or 152 is the four-stage net of that depth;
every other bare depth is 6n+2, a three-stage net of basic blocks. `resnet50` is
therefore the four-stage net, although 50 = 6*8+2, too; the three-stage net is
`build_resnet(depth=50, block="basic")`.

Without a suffix for it, the shortcut is the identity (option A of He et al.
2015) in three-stage nets of basic blocks without pre-activation, and the
projection (option B) in all others.
"""

import contextlib
import numbers
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras_resnet_cifar.errors import InputError, spelled, unknown

BLOCKS = {"basic": 2, "bottleneck": 3}  # weight layers of one block
SHORTCUTS = ("identity", "projection", "conv3x3")
STEMS = ("cifar", "imagenet")

THREE_STAGE_WIDTHS = (16, 32, 64)
FOUR_STAGE_WIDTHS = (64, 128, 256, 512)
_WIDTHS = {3: THREE_STAGE_WIDTHS, 4: FOUR_STAGE_WIDTHS}
# He et al. 2015, table 1: depth -> block, blocks of each stage.
FOUR_STAGE = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}

# Suffix of a name -> fields of `Architecture` that it sets.
SUFFIXES: dict[str, dict[str, Any]] = {
    "bottleneck": {"block": "bottleneck", "widths": THREE_STAGE_WIDTHS},
    "preact": {"preactivation": True},
    **{name: {"shortcut": name} for name in SHORTCUTS},
    "imagenet": {"stem": "imagenet"},
}

RULE = (
    "resnet{depth}[-bottleneck][-preact][-identity|-projection|-conv3x3]"
    "[-imagenet] with depth 6n+2, 9n+2 if -bottleneck, or four-stage "
    + ", ".join(map(str, FOUR_STAGE))
)


@dataclass(frozen=True)
class Architecture:
    """A ResNet without its input and its classes.

    The fields are documented as arguments of `build_resnet`.
    """

    depth: int
    block: str
    shortcut: str
    widths: tuple[int, ...]
    stage_blocks: tuple[int, ...]
    stem_width: int
    preactivation: bool = False
    stem: str = "cifar"
    final_norm: bool = True

    @property
    def name(self) -> str:
        """The name in the table or by the rule, else `resnet{depth}-custom`."""
        fields = vars(self).items()
        suffixes = [s for s in SUFFIXES if SUFFIXES[s].items() <= fields]
        short = [s for s in suffixes if s not in SHORTCUTS]
        names = [
            "-".join([f"resnet{self.depth}", *s]) for s in (short, suffixes)
        ]
        for name in [*names, *ARCHITECTURES]:
            with contextlib.suppress(InputError):
                if resolve(name) == self:
                    return name
        return f"resnet{self.depth}-custom"


@dataclass(frozen=True)
class Entry:
    """A row of the table: trainable parameters for 10 classes, and a source.

    `fields` are those of `resolve`, for a name that does not follow the rule.
    """

    parameters: int
    source: str
    fields: dict[str, Any] | None = None


def resolve(name: str | None = None, **fields: Any) -> Architecture:
    """Returns the `Architecture` of a name, of a depth, or of explicit stages.

    The fields are those of `Architecture`; they override the name. `None`
    leaves a field to the name or to its default. A depth alone is 6n+2 (basic),
    9n+2 (bottleneck) or that of a four-stage net; `stage_blocks` with `widths`
    describes any net and sets its depth. Fields that describe no net, or
    contradict each other, raise `InputError`.
    """
    given = {key: value for key, value in fields.items() if value is not None}
    for key in given.keys() & {"widths", "stage_blocks"}:
        given[key] = _positive_integers(key, given[key])
    for key in given.keys() & {"preactivation", "final_norm"}:
        if not isinstance(given[key], bool):
            raise InputError(f"{key}={given[key]!r}: give True or False")
    for key in given.keys() & {"depth", "stem_width"}:
        if not isinstance(given[key], numbers.Integral):
            raise InputError(f"{key}={given[key]!r}: give a whole number")
    if given.get("stem_width", 1) < 1:
        raise InputError(f"stem_width={given['stem_width']}: give 1 or more")
    if name is None:
        return _complete(given)
    if "depth" in given:
        raise InputError(
            f"arch={name!r} contains the depth: omit depth={given['depth']}"
        )
    named = _fields_of(name)
    if "stage_blocks" in given:
        named.pop("depth", None)  # it follows from the blocks
    return _complete(named | given)


def _fields_of(name: str) -> dict[str, Any]:
    """Returns the fields that a name sets, without defaults."""
    text = str(spelled(name, ARCHITECTURES)).lower().replace("_", "-")
    entry = ARCHITECTURES.get(text)
    if entry is not None and entry.fields is not None:
        return dict(entry.fields)
    match = re.fullmatch(r"resnet-?(\d{1,5})((?:-[a-z0-9]+)*)", text)
    fields: dict[str, Any] = {"depth": int(match[1])} if match else {}
    for suffix in match[2].split("-")[1:] if match else ():
        if suffix not in SUFFIXES:
            raise unknown(f"suffix of {name}", suffix, SUFFIXES)
        if fields.keys() & SUFFIXES[suffix].keys():  # such as two shortcuts
            raise InputError(
                f"arch={name!r}: -{suffix} contradicts another suffix: omit one"
            )
        fields |= SUFFIXES[suffix]
    if match is None:
        hint = f"give a name such as resnet20; the rule is {RULE}"
        raise unknown("arch", name, ARCHITECTURES, hint=hint)
    return fields


def _complete(given: dict[str, Any]) -> Architecture:
    """Returns the architecture of some fields, with defaults for the others."""
    choices = {"block": list(BLOCKS), "shortcut": SHORTCUTS, "stem": STEMS}
    for key in given.keys() & choices.keys():
        if given[key] not in choices[key]:
            raise unknown(key, given[key], choices[key])
    fields = {"block": "basic"} | given
    if "stage_blocks" not in fields:
        fields |= _stages_of_depth(given)
    block, stage_blocks = fields["block"], fields["stage_blocks"]
    widths = fields.setdefault("widths", _WIDTHS.get(len(stage_blocks), ()))
    if len(widths) != len(stage_blocks):
        raise InputError(
            f"widths={widths} and stage_blocks={stage_blocks} differ in "
            "length: give one width per stage"
        )
    fields.setdefault("stem_width", widths[0])
    depth = BLOCKS[block] * sum(stage_blocks) + 2
    if fields.setdefault("depth", depth) != depth:
        raise InputError(
            f"depth={fields['depth']} contradicts stage_blocks={stage_blocks} "
            f"of {block} blocks, which make a depth of {depth}: omit depth"
        )
    plain = block == "basic" and len(widths) == 3
    option_a = plain and not fields.get("preactivation")
    fields.setdefault("shortcut", "identity" if option_a else "projection")
    arch = Architecture(**fields)
    if not (arch.final_norm or arch.preactivation):
        raise InputError("final_norm=False is for pre-activation nets: omit it")
    filters = [arch.stem_width, *widths]
    if arch.shortcut == "identity" and filters != sorted(filters):
        raise InputError(
            f"widths={widths}: with identity shortcuts, no stage may be "
            "narrower than the previous one or the stem; use "
            "shortcut='projection'"
        )
    return arch


def _stages_of_depth(given: dict[str, Any]) -> dict[str, Any]:
    """Returns the `block` and `stage_blocks` of a net given by its depth."""
    if "depth" not in given:
        raise InputError(
            "no net named: give a name such as 'resnet20', a depth, or "
            "stage_blocks and widths"
        )
    depth, block = given["depth"], given.get("block")
    widths = given.get("widths", FOUR_STAGE_WIDTHS)
    if depth in FOUR_STAGE and len(widths) == 4:
        four_stage_block, stage_blocks = FOUR_STAGE[depth]
        if block in (None, four_stage_block):
            return {"block": four_stage_block, "stage_blocks": stage_blocks}
    block = block or "basic"
    step = 3 * BLOCKS[block]
    n, rest = divmod(depth - 2, step)
    if n > 0 and not rest:
        return {"block": block, "stage_blocks": (n, n, n)}
    suffix = "" if block == "basic" else "-bottleneck"
    four_stages = not suffix and len(widths) == 4
    center = max(depth, step + 2)
    near = [
        f"resnet{d}{suffix}"
        for d in range(center - step + 1, center + step + 1)
        if (d - 2) % step == 0 or (four_stages and d in FOUR_STAGE)
    ]
    if not suffix and depth > 2 and (depth - 2) % 9 == 0:
        near.append(f"resnet{depth}-bottleneck")
    raise InputError(
        f"no ResNet of {block} blocks has depth {depth}: the nearest are "
        f"{', '.join(near)}; the rule is {RULE}"
    )


def _positive_integers(key: str, values: Sequence[int]) -> tuple[int, ...]:
    try:
        integers = tuple(operator.index(value) for value in values)
    except TypeError:
        integers = ()
    if not integers or min(integers) < 1:
        raise InputError(
            f"{key}={values!r}: give positive integers, one per stage"
        )
    return integers


def list_architectures() -> list[dict[str, Any]]:
    """Returns the table of named nets as a list of dicts.

    Each has `name`, `depth`, `block`, `parameters` (trainable, for 10 classes
    and RGB input) and `source`. `build_resnet` accepts other names, too.
    """
    return [
        {
            "name": name,
            "depth": resolve(name).depth,
            "block": resolve(name).block,
            "parameters": entry.parameters,
            "source": entry.source,
        }
        for name, entry in ARCHITECTURES.items()
    ]


_V1 = "He et al. 2015, arXiv:1512.03385"
_V2 = "He et al. 2016, arXiv:1603.05027"
_STEM = "3x3 stem as in kuangliu/pytorch-cifar"

ARCHITECTURES = {
    "resnet8": Entry(75_290, f"{_V1}, section 4.2, n = 1"),
    "resnet14": Entry(172_506, f"{_V1}, section 4.2, n = 2"),
    "resnet20": Entry(269_722, f"{_V1}, table 6"),
    "resnet32": Entry(464_154, f"{_V1}, table 6"),
    "resnet44": Entry(658_586, f"{_V1}, table 6"),
    "resnet56": Entry(853_018, f"{_V1}, table 6"),
    "resnet110": Entry(1_727_962, f"{_V1}, table 6"),
    "resnet1202": Entry(19_421_274, f"{_V1}, table 6"),
    "resnet20-projection": Entry(272_474, f"{_V1}, option B"),
    "resnet32-projection": Entry(466_906, f"{_V1}, option B"),
    "resnet44-projection": Entry(661_338, f"{_V1}, option B"),
    "resnet56-projection": Entry(855_770, f"{_V1}, option B"),
    "resnet110-projection": Entry(1_730_714, f"{_V1}, option B"),
    "resnet1202-projection": Entry(19_424_026, f"{_V1}, option B"),
    "resnet164-bottleneck": Entry(1_704_154, f"{_V2}, original unit"),
    "resnet20-preact": Entry(272_282, _V2),
    "resnet56-preact": Entry(855_578, _V2),
    "resnet110-preact": Entry(1_730_522, _V2),
    "resnet47-bottleneck-preact": Entry(497_690, f"{_V2}, n = 5"),
    "resnet164-bottleneck-preact": Entry(1_703_258, _V2),
    "resnet1001-bottleneck-preact": Entry(10_327_706, _V2),
    "resnet26-ie534": Entry(
        3_880_490,
        "CIFAR-100 net of UIUC's course IE 534, homework 4 (2018)",
        {
            "stage_blocks": (2, 4, 4, 2),
            "widths": (32, 64, 128, 256),
            "shortcut": "conv3x3",
        },
    ),
    "wideresnet16-4": Entry(
        2_748_890,
        "Zagoruyko and Komodakis 2016, arXiv:1605.07146, which counts the "
        "shortcuts too: depth 16",
        {
            "stage_blocks": (2, 2, 2),
            "widths": (64, 128, 256),
            "stem_width": 16,
            "preactivation": True,
        },
    ),
    "resnet18": Entry(11_173_962, f"{_V1}, table 1; {_STEM}"),
    "resnet34": Entry(21_282_122, f"{_V1}, table 1; {_STEM}"),
    "resnet50": Entry(23_520_842, f"{_V1}, table 1; {_STEM}"),
    "resnet101": Entry(42_512_970, f"{_V1}, table 1; {_STEM}"),
    "resnet152": Entry(58_156_618, f"{_V1}, table 1; {_STEM}"),
    "resnet18-preact": Entry(11_172_170, f"{_V2}; {_STEM}"),
    "resnet34-preact": Entry(21_280_330, f"{_V2}; {_STEM}"),
    "resnet50-preact": Entry(23_513_162, f"{_V2}; {_STEM}"),
    "resnet18-preact-kuangliu": Entry(
        11_171_146,
        "kuangliu/pytorch-cifar: no BatchNorm and ReLU before the pooling",
        {"depth": 18, "preactivation": True, "final_norm": False},
    ),
    "resnet18-imagenet": Entry(11_181_642, f"{_V1}, table 1"),
    "resnet34-imagenet": Entry(21_289_802, f"{_V1}, table 1"),
    "resnet50-imagenet": Entry(23_528_522, f"{_V1}, table 1"),
    "resnet101-imagenet": Entry(42_520_650, f"{_V1}, table 1"),
    "resnet152-imagenet": Entry(58_164_298, f"{_V1}, table 1"),
}
