"""Names of architectures: one rule, one table, and what is near a wrong name.

The rule is `resnet{depth}` followed by any of the suffixes

    -bottleneck                 three stages of bottleneck blocks, depth 9n+2
    -preact                     full pre-activation (He et al. 2016)
    -identity, -projection, -conv3x3
                                the shortcut where the shape changes
    -imagenet                   7x7 stride-2 stem and max pooling

A bare depth of 18, 34, 50, 101 or 152 is the four-stage net of that depth;
every other bare depth is 6n+2, the three-stage net of basic blocks. So
`resnet50` is the four-stage 50, although 50 = 6*8+2 as well; that one is
`build_resnet(depth=50, block="basic")`.

Without a suffix the shortcut is the identity (option A of He et al. 2015) for
three stages of basic blocks, and the projection (option B) for all others.
"""

import numbers
import operator
import re
from dataclasses import dataclass

from keras_resnet_cifar.errors import InputError, unknown

BLOCKS = {"basic": 2, "bottleneck": 3}  # weight layers of one block
SHORTCUTS = ("identity", "projection", "conv3x3")
STEMS = ("cifar", "imagenet")
SUFFIXES = ("bottleneck", "preact", *SHORTCUTS, "imagenet")

THREE_STAGE_WIDTHS = (16, 32, 64)
FOUR_STAGE_WIDTHS = (64, 128, 256, 512)
# He et al. 2015, table 1: depth -> block, blocks of each stage.
FOUR_STAGE = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}

RULE = (
    "resnet{depth}[-bottleneck][-preact][-identity|-projection|-conv3x3]"
    "[-imagenet] with depth 6n+2, 9n+2 if -bottleneck, or four-stage "
    + ", ".join(map(str, FOUR_STAGE))
)


@dataclass(frozen=True)
class Architecture:
    """What a ResNet is, apart from its input and its classes.

    Attributes:
        depth: Weight layers on the main path, shortcuts not counted.
        block: `"basic"` (3x3, 3x3) or `"bottleneck"` (1x1, 3x3, 1x1, which
            ends four times as wide).
        preactivation: BatchNorm and ReLU before the convolutions.
        shortcut: `"identity"`, `"projection"` or `"conv3x3"`: the shortcut
            where the shape changes.
        widths: Filters of each stage, before a bottleneck's expansion.
        stage_blocks: Blocks of each stage.
        stem: `"cifar"` or `"imagenet"`.
        final_norm: Whether a pre-activation net ends in BatchNorm and ReLU.
            The paper's do; kuangliu/pytorch-cifar's do not.
    """

    depth: int
    block: str
    preactivation: bool
    shortcut: str
    widths: tuple
    stage_blocks: tuple
    stem: str = "cifar"
    final_norm: bool = True

    @property
    def name(self):
        """The name in the table or by the rule, else `resnet{depth}-custom`."""
        for name, entry in ARCHITECTURES.items():
            if entry.architecture == self:
                return name
        three_stage = len(self.widths) == 3 and self.block == "bottleneck"
        suffixes = {
            "bottleneck": three_stage,
            "preact": self.preactivation,
            "imagenet": self.stem == "imagenet",
        }
        for shortcut in (None, self.shortcut):
            chosen = [s for s in SUFFIXES if s == shortcut or suffixes.get(s)]
            name = "-".join([f"resnet{self.depth}", *chosen])
            try:
                if parse(name) == self:
                    return name
            except InputError:
                break
        return f"resnet{self.depth}-custom"


@dataclass(frozen=True)
class Entry:
    """A row of the table: trainable parameters for 10 classes, and a source."""

    parameters: int
    source: str
    architecture: Architecture | None = None  # where the rule has no name


def resolve(
    name=None,
    *,
    depth=None,
    block=None,
    preactivation=None,
    shortcut=None,
    widths=None,
    stage_blocks=None,
    stem=None,
    final_norm=None,
):
    """Returns the `Architecture` of a name, of a depth, or of explicit stages.

    Args:
        name: A name by the rule or of the table; the other arguments, where
            given, replace what it says.
        depth: 6n+2 (basic), 9n+2 (bottleneck) or a four-stage depth.
        block, preactivation, shortcut, widths, stage_blocks, stem,
            final_norm: See `Architecture`. `stage_blocks` together with
            `widths` describes any net; its depth follows.

    Raises:
        InputError: If nothing, or two things that disagree, are described.
    """
    given = {
        "depth": depth,
        "block": block,
        "preactivation": preactivation,
        "shortcut": shortcut,
        "widths": _integers("widths", widths),
        "stage_blocks": _integers("stage_blocks", stage_blocks),
        "stem": stem,
        "final_norm": final_norm,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if not isinstance(given.get("depth", 0), numbers.Integral):
        raise InputError(f"depth={depth!r}: give a whole number")
    if not isinstance(given.get("preactivation", False), bool):
        raise InputError(f"preactivation={preactivation!r}: True or False")
    if name is not None:
        if depth is not None:
            raise InputError(
                f"give arch={name!r} or depth={depth}, not both: the name "
                "says the depth"
            )
        described = _described(name)
        if stage_blocks is not None:
            described.pop("depth")  # it follows from the blocks
        return _complete(described | given)
    return _complete(given)


def parse(name):
    """Returns the `Architecture` that a name means."""
    return _complete(_described(name))


def _described(name):
    """A name's meaning as keyword arguments, before the defaults."""
    entry = ARCHITECTURES.get(name)
    if entry is not None and entry.architecture is not None:
        return dict(vars(entry.architecture))
    match = re.fullmatch(r"resnet(\d{1,5})((?:-[a-z0-9]+)*)", str(name))
    suffixes = match[2].split("-")[1:] if match else []
    repeated = len(set(suffixes)) < len(suffixes)
    shortcuts = [s for s in suffixes if s in SHORTCUTS]
    if not match or repeated or len(shortcuts) > 1:
        raise unknown(
            "arch",
            name,
            ARCHITECTURES,
            hint=f"such as resnet20; the rule is {RULE}",
        )
    for suffix in suffixes:
        if suffix not in SUFFIXES:
            raise unknown("suffix", f"{suffix} in {name}", SUFFIXES)
    described = {"depth": int(match[1])}
    if "bottleneck" in suffixes:
        described |= {"block": "bottleneck", "widths": THREE_STAGE_WIDTHS}
    if "preact" in suffixes:
        described["preactivation"] = True
    if shortcuts:
        described["shortcut"] = shortcuts[0]
    if "imagenet" in suffixes:
        described["stem"] = "imagenet"
    return described


def _complete(given):
    """Fills what is not given: stages from the depth, then the defaults."""
    _check_choice(given, "block", BLOCKS)
    _check_choice(given, "shortcut", SHORTCUTS)
    _check_choice(given, "stem", STEMS)
    block, widths, blocks = _stages(given)
    depth = BLOCKS[block] * sum(blocks) + 2
    if given.get("depth", depth) != depth:
        raise InputError(
            f"depth={given['depth']} is not that of stage_blocks={blocks} of "
            f"{block} blocks: it is {depth}; leave depth out"
        )
    preactivation = bool(given.get("preactivation", False))
    final_norm = bool(given.get("final_norm", True))
    if not (final_norm or preactivation):
        raise InputError(
            "final_norm=False is for pre-activation nets: the others have no "
            "BatchNorm there; leave it out"
        )
    plain = block == "basic" and len(widths) == 3 and not preactivation
    shortcut = given.get("shortcut", "identity" if plain else "projection")
    if shortcut == "identity" and list(widths) != sorted(widths):
        raise InputError(
            f"widths={widths}: the identity shortcut pads channels, so a stage "
            "cannot be narrower than the one before; take shortcut="
            "'projection'"
        )
    return Architecture(
        depth=depth,
        block=block,
        preactivation=preactivation,
        shortcut=shortcut,
        widths=widths,
        stage_blocks=blocks,
        stem=given.get("stem", "cifar"),
        final_norm=final_norm,
    )


def _stages(given):
    """Returns (block, widths, stage_blocks) of what is given."""
    depth, block = given.get("depth"), given.get("block")
    widths, blocks = given.get("widths"), given.get("stage_blocks")
    if blocks is not None:
        widths = widths or {
            3: THREE_STAGE_WIDTHS,
            4: FOUR_STAGE_WIDTHS,
        }.get(len(blocks), ())
        if len(widths) != len(blocks):
            raise InputError(
                f"widths={widths} and stage_blocks={blocks} differ in length: "
                "give one width a stage"
            )
        return block or "basic", widths, blocks
    if depth is None:
        raise InputError(
            "which net? Give a name such as 'resnet20', a depth, or "
            "stage_blocks and widths"
        )
    stages = len(widths) if widths else None
    four = FOUR_STAGE.get(depth)
    if four and block in (None, four[0]) and stages in (None, 4):
        return four[0], widths or FOUR_STAGE_WIDTHS, four[1]
    if stages not in (None, 3):
        raise InputError(
            f"depth={depth} with {stages} widths: a depth alone describes "
            f"three stages (or four: {', '.join(map(str, FOUR_STAGE))}); "
            "give stage_blocks as well"
        )
    block = block or "basic"
    n, rest = divmod(depth - 2, 3 * BLOCKS[block])
    if rest or n < 1:
        raise _impossible(depth, block)
    return block, widths or THREE_STAGE_WIDTHS, (n, n, n)


def _impossible(depth, block):
    """The error for a depth that no net has, with its neighbours."""
    step = 3 * BLOCKS[block]
    below = max((depth - 2) // step, 1) * step + 2
    suffix = "-bottleneck" if block == "bottleneck" else ""
    near = [below, below + step]
    near = [f"resnet{d}{suffix}" for d in near if suffix or d not in FOUR_STAGE]
    if not suffix:
        near += [f"resnet{d}" for d in FOUR_STAGE if abs(d - depth) <= step]
        if depth > 2 and (depth - 2) % 9 == 0:
            near.append(f"resnet{depth}-bottleneck")
    return InputError(
        f"no ResNet of {block} blocks has depth {depth}: near are "
        f"{', '.join(near)}; the rule is {RULE}"
    )


def _check_choice(given, key, known):
    if key in given and given[key] not in known:
        raise unknown(key, given[key], known)


def _integers(key, values):
    """Positive integers as a tuple of int, `None` as it is."""
    if values is None:
        return None
    try:
        integers = tuple(operator.index(value) for value in values)
    except TypeError:
        integers = ()
    if not integers or min(integers) < 1:
        raise InputError(
            f"{key}={values!r}: give positive integers, one a stage"
        )
    return integers


def list_architectures():
    """Returns the table of named nets as a list of dicts.

    Each has `name`, `depth`, `block`, `parameters` (trainable, for 10 classes
    and RGB input) and `source`. Any other name by the rule works as well.
    """
    return [
        {
            "name": name,
            "depth": parse(name).depth,
            "block": parse(name).block,
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
        Architecture(
            depth=26,
            block="basic",
            preactivation=False,
            shortcut="conv3x3",
            widths=(32, 64, 128, 256),
            stage_blocks=(2, 4, 4, 2),
        ),
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
        Architecture(
            depth=18,
            block="basic",
            preactivation=True,
            shortcut="projection",
            widths=FOUR_STAGE_WIDTHS,
            stage_blocks=FOUR_STAGE[18][1],
            final_norm=False,
        ),
    ),
    "resnet18-imagenet": Entry(11_181_642, f"{_V1}, table 1"),
    "resnet34-imagenet": Entry(21_289_802, f"{_V1}, table 1"),
    "resnet50-imagenet": Entry(23_528_522, f"{_V1}, table 1"),
    "resnet101-imagenet": Entry(42_520_650, f"{_V1}, table 1"),
    "resnet152-imagenet": Entry(58_164_298, f"{_V1}, table 1"),
}
