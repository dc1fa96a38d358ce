"""Each naming scheme against a plain PyTorch net with its names, both ways."""

import keras
import numpy as np
import pytest

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.models import nets
from keras_resnet_cifar.models.cloning import clone_with
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.models.torch_checkpoints import (
    load_torch_checkpoint,
    save_torch_checkpoint,
)
from keras_resnet_cifar.pytorch.schemes import SCHEMES

torch = pytest.importorskip("torch", reason="the references are PyTorch's")
safetensors = pytest.importorskip("safetensors.torch", reason="a format")
references = pytest.importorskip("torch_references")
Net, randomized = references.Net, references.randomized

SIZE = (34, 47)  # halved: 34, 17, 9, 5 and 47, 24, 12, 6: even and odd edges
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
THREE = {"widths": (4, 8, 16), "blocks": (1, 2, 1)}
FOUR = {"widths": (4, 8, 12, 16), "blocks": (1, 2, 1, 1)}
DEEP = {"bottleneck": True}

# Name: scheme, net. The first of each scheme runs by default.
CASES = {
    "akamaster A": ("akamaster", {**THREE, "kind": "identity"}),
    "akamaster B": ("akamaster", THREE),
    "chenyaofo bottleneck": ("chenyaofo", {**THREE, **DEEP}),
    "chenyaofo": ("chenyaofo", THREE),
    "imgclsmob bottleneck": ("imgclsmob", {**THREE, **DEEP}),
    "imgclsmob": ("imgclsmob", {**THREE, "classes": 100}),
    "kuangliu 3x3": ("kuangliu", {**FOUR, "kind": "conv3x3"}),
    "kuangliu": ("kuangliu", FOUR),
    "kuangliu bottleneck": ("kuangliu", {**FOUR, **DEEP}),
    "preact": ("kuangliu-preact", FOUR),
    "preact bottleneck": ("kuangliu-preact", {**FOUR, **DEEP}),
    "weiaicunzai": ("weiaicunzai", {**FOUR, "classes": 100}),
    "weiaicunzai bottleneck": ("weiaicunzai", {**FOUR, **DEEP}),
    "torchvision bottleneck": ("torchvision", {**FOUR, **DEEP, "stem": 7}),
    "torchvision": ("torchvision", {**FOUR, "stem": 7, "classes": 7}),
    "torchvision 3x3 stem": ("torchvision", FOUR),
}
FAST = {scheme: name for name, (scheme, _) in reversed(CASES.items())}


def fast_first(names, fast):
    """The names as parameters, those that are not in `fast` marked slow."""
    return [
        pytest.param(name, marks=() if name in fast else pytest.mark.slow)
        for name in names
    ]


def saved(tensors, path):
    torch.save(tensors, path)
    return path


def assert_same_weights(model, other):
    for weight, again in zip(
        model.get_weights(), other.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(weight, again)


@pytest.mark.parametrize("name", fast_first(CASES, FAST.values()))
def test_logits_and_round_trip(name, tmp_path):
    scheme, shape = CASES[name]
    net = randomized(Net(scheme, **shape))
    path = saved(net.state_dict(), tmp_path / "net.pth")
    model = load_torch_checkpoint(path, normalization=(MEAN, STD))
    images = np.random.default_rng(0).integers(0, 256, (4, *SIZE, 3), "uint8")
    with torch.no_grad():
        expected = net(references.normalized(images, MEAN, STD)).numpy()
    resized = clone_with(model, inputs=keras.Input((*SIZE, 3)))
    logits = keras.ops.convert_to_numpy(resized(images))
    # Another order of sums in float32, over some ten layers.
    np.testing.assert_allclose(
        logits, expected, rtol=0, atol=1e-4 * abs(expected).max()
    )

    back = tmp_path / "back.pth"
    save_torch_checkpoint(model, back, scheme)
    tensors = torch.load(back, weights_only=True)
    fresh = Net(scheme, **shape)
    fresh.load_state_dict(tensors, strict=True)
    for key, tensor in net.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], tensor), key
    again = load_torch_checkpoint(back, normalization=(MEAN, STD))
    assert_same_weights(model, again)


FULL_THREE = {"widths": (16, 32, 64)}
FULL_FOUR = {"widths": (64, 128, 256, 512)}


# A named architecture: scheme, net.
NAMED = {
    "resnet20": (
        "akamaster",
        {**FULL_THREE, "blocks": (3, 3, 3), "kind": "identity"},
    ),
    "resnet56-projection": ("chenyaofo", {**FULL_THREE, "blocks": (9, 9, 9)}),
    "resnet18-preact-kuangliu": (
        "kuangliu-preact",
        {**FULL_FOUR, "blocks": (2, 2, 2, 2)},
    ),
    "resnet50-imagenet": (
        "torchvision",
        {**FULL_FOUR, **DEEP, "blocks": (3, 4, 6, 3), "stem": 7},
    ),
}


@pytest.mark.parametrize("arch", fast_first(NAMED, ["resnet20"]))
def test_the_net_has_its_name(arch, tmp_path):
    scheme, shape = NAMED[arch]
    path = saved(Net(scheme, **shape).state_dict(), tmp_path / "net.pth")
    assert load_torch_checkpoint(path, arch=arch).name == arch


@pytest.fixture
def small():
    return randomized(Net("akamaster", **THREE, kind="identity"))


def prefixed(tensors, prefix):
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda t: {"state_dict": prefixed(t, "module."), "best_prec1": 91.7},
        lambda t: {"net": t, "acc": 95.0, "epoch": 3},
        lambda t: {"model": {"state_dict": prefixed(t, "_orig_mod.")}},
        lambda t: prefixed(t, "module._orig_mod."),
        lambda t: {k: v for k, v in t.items() if "num_batches" not in k},
        lambda t: {k: v.double() for k, v in t.items()},
    ],
    ids=["state_dict", "net", "model", "prefixes", "no counters", "float64"],
)
def test_wrappers_and_prefixes(wrapped, small, tmp_path):
    path = saved(wrapped(small.state_dict()), tmp_path / "net.pth")
    assert_head(load_torch_checkpoint(path), small)


@pytest.mark.parametrize("suffix", [".th", ".pt"])
def test_other_suffixes(suffix, small, tmp_path):
    path = saved(small.state_dict(), tmp_path / f"net{suffix}")
    assert_head(load_torch_checkpoint(path), small)


def assert_head(model, net):
    np.testing.assert_array_equal(
        model.get_layer("head_dense").get_weights()[1],
        net.linear.bias.detach().numpy(),
    )


def test_half_precision_is_read_exactly(small, tmp_path):
    """Also bfloat16 in safetensors, which NumPy alone does not have."""
    small = small.bfloat16()
    safetensors.save_file(small.state_dict(), tmp_path / "a.safetensors")
    torch.save(small.state_dict(), tmp_path / "a.pth")
    models = [
        load_torch_checkpoint(tmp_path / f"a{suffix}")
        for suffix in (".safetensors", ".pth")
    ]
    for one, other in zip(*(m.get_weights() for m in models), strict=True):
        np.testing.assert_array_equal(one, other)


def test_safetensors_are_read_by_pytorch_and_here(small, tmp_path):
    model = load_torch_checkpoint(saved(small.state_dict(), tmp_path / "a.pt"))
    path = tmp_path / "b.safetensors"
    save_torch_checkpoint(model, path, "akamaster")
    fresh = Net("akamaster", **THREE, kind="identity")
    fresh.load_state_dict(safetensors.load_file(path), strict=True)
    assert torch.equal(fresh.conv1.weight, small.conv1.weight)


def renamed(old, new):
    def change(tensors):
        tensors[new] = tensors.pop(old)

    return change


def replaced(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


def removed(*names):
    def change(tensors):
        for name in names:
            del tensors[name]

    return change


# Change of a whole state_dict -> words of the refusal.
MISFITS = {
    "missing": (
        removed("layer2.0.bn1.running_var", "linear.bias"),
        ("2 missing: layer2.0.bn1.running_var, linear.bias",),
    ),
    "no head": (
        removed("linear.weight", "linear.bias"),
        ("1 missing: linear.weight",),
    ),
    "unexpected": (
        replaced("conv1.bias", torch.zeros(4)),
        ("1 unexpected: conv1.bias",),
    ),
    "another counter": (
        replaced("extra.num_batches_tracked", torch.tensor(1)),
        ("1 unexpected: extra.num_batches_tracked",),
    ),
    "renamed": (
        renamed("layer1.0.bn2.bias", "layer1.0.bn2.beta"),
        ("missing: layer1.0.bn2.bias", "unexpected: layer1.0.bn2.beta"),
    ),
    "misshapen": (
        replaced("layer1.0.bn2.bias", torch.zeros(5)),
        ("1 misshapen: layer1.0.bn2.bias (5,), not (4,)",),
    ),
    "grey images": (
        replaced("conv1.weight", torch.zeros(4, 1, 3, 3)),
        ("conv1.weight (4, 1, 3, 3), not (4, 3, 3, 3)",),
    ),
    "another rank": (
        replaced("layer1.0.conv1.weight", torch.zeros(4)),
        ("misshapen: layer1.0.conv1.weight (4,)",),
    ),
    "empty": (
        replaced("layer1.0.conv1.weight", torch.zeros(0, 4, 3, 3)),
        ("misshapen: layer1.0.conv1.weight (0, 4, 3, 3)",),
    ),
    "too wide for its file": (
        replaced("layer3.0.conv1.weight", torch.zeros(20_000, 1, 1, 1)),
        ("a net of widths (4, 8, 20000) has more weights",),
    ),
    "a narrower stage": (
        replaced("layer1.0.conv1.weight", torch.zeros(9, 4, 3, 3)),
        ("widths=(9, 8, 16)",),
    ),
    "not a number": (
        replaced("linear.bias", torch.full((10,), torch.nan)),
        ("1 damaged: linear.bias",),
    ),
    "negative variance": (
        replaced("bn1.running_var", torch.full((4,), -1.0)),
        ("1 damaged: bn1.running_var",),
    ),
    "integers": (
        replaced("linear.bias", torch.zeros(10, dtype=torch.int32)),
        ("linear.bias of int32",),
    ),
    "a block left out": (
        renamed("layer2.1.conv1.weight", "layer2.7.conv1.weight"),
        ("missing", "unexpected"),
    ),
    "a unit without a number": (
        renamed("layer2.1.conv1.weight", "layer2.01.conv1.weight"),
        ("unexpected: layer2.01.conv1.weight",),
    ),
    "a name twice": (
        replaced("module.linear.bias", torch.zeros(10)),
        ("linear.bias twice",),
    ),
    "no tensor": (replaced("epoch", 3), ("epoch is not a tensor but int",)),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_refused_and_listed(name, small, tmp_path):
    change, words = MISFITS[name]
    tensors = dict(small.state_dict())
    change(tensors)
    path = saved(tensors, tmp_path / "net.pth")
    with pytest.raises(InputError) as error:
        load_torch_checkpoint(path)
    for word in (str(path), *words):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_projections_that_are_lost_are_no_identity(tmp_path):
    tensors = Net("kuangliu", **FOUR).state_dict()
    tensors = {k: v for k, v in tensors.items() if "shortcut" not in k}
    path = saved(tensors, tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"missing: layer2.0.shortcut.0"):
        load_torch_checkpoint(path)


def test_a_given_arch_is_checked(small, tmp_path):
    path = saved(small.state_dict(), tmp_path / "net.pth")
    with pytest.raises(InputError) as error:
        load_torch_checkpoint(path, arch="resnet20")
    assert "not resnet20" in str(error.value)
    assert "stage_blocks is (1, 2, 1), not (3, 3, 3)" in str(error.value)


@pytest.mark.parametrize(
    ("scheme", "classes", "stem", "normalization"),
    [
        ("akamaster", 100, "cifar", "imagenet"),
        ("chenyaofo", 10, "cifar", (0.4914, 0.4822, 0.4465)),
        ("chenyaofo", 100, "cifar", (0.5070, 0.4865, 0.4409)),
        ("imgclsmob", 100, "cifar", (0.4914, 0.4822, 0.4465)),
        ("kuangliu", 10, "cifar", (0.4914, 0.4822, 0.4465)),
        ("kuangliu", 20, "cifar", "cifar100-coarse"),
        (
            "weiaicunzai",
            100,
            "cifar",
            (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
        ),
        ("torchvision", 7, "imagenet", "imagenet"),
        ("torchvision", 10, "cifar", (0.4914, 0.4822, 0.4465)),
    ],
)
def test_the_normalization_is_the_schemes(scheme, classes, stem, normalization):
    default = SCHEMES[scheme].default_normalization(stem, classes)
    assert normalization in (default, default[0])


@pytest.mark.parametrize(
    ("scheme", "shape", "mean"),
    [
        ("akamaster", {**THREE, "classes": 100}, (0.485, 0.456, 0.406)),
        ("kuangliu", {**FOUR, "classes": 20}, (0.5071, 0.4865, 0.4409)),
    ],
)
def test_a_loaded_model_normalizes(scheme, shape, mean, tmp_path):
    path = saved(Net(scheme, **shape).state_dict(), tmp_path / "net.pth")
    config = load_torch_checkpoint(path).get_layer("normalization").get_config()
    np.testing.assert_allclose(np.divide(config["mean"], 255), mean)


def test_without_a_known_number_of_classes_it_must_be_named(tmp_path):
    tensors = Net("kuangliu", **FOUR, classes=43).state_dict()
    path = saved(tensors, tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"43 classes.* normalization="):
        load_torch_checkpoint(path)
    load_torch_checkpoint(path, normalization="per_image")


# A net of ours -> the schemes that have such nets.
FITTING = {
    "resnet8": ({}, ["akamaster"]),
    "resnet8-projection": ({}, ["akamaster", "chenyaofo", "imgclsmob"]),
    "resnet8-preact": ({}, []),
    "resnet18": (
        {"widths": (4, 8, 12, 16)},
        ["kuangliu", "weiaicunzai", "torchvision"],
    ),
    "resnet18-imagenet": ({"widths": (4, 8, 12, 16)}, ["torchvision"]),
    "resnet18-preact-kuangliu": (
        {"widths": (4, 8, 12, 16)},
        ["kuangliu-preact"],
    ),
}


@pytest.mark.parametrize(
    "arch", fast_first(FITTING, ["resnet8", "resnet8-preact"])
)
def test_a_scheme_without_such_nets_names_those_of_as_many_stages(
    arch, tmp_path
):
    shape, fitting = FITTING[arch]
    model = build_resnet(arch, **shape)
    for scheme in SCHEMES:
        path = tmp_path / f"{scheme}.pth"
        if scheme in fitting:
            save_torch_checkpoint(model, path, scheme)
            continue
        remedy = (
            "schemes of 4 stages: kuangliu, kuangliu-preact, weiaicunzai, "
            "torchvision"
            if "resnet18" in arch
            else "schemes of 3 stages: akamaster, chenyaofo, imgclsmob"
        )
        with pytest.raises(InputError, match=f"{remedy}$"):
            save_torch_checkpoint(model, path, scheme)
        assert not path.exists()
    with pytest.raises(InputError, match="kuangliu"):
        save_torch_checkpoint(model, tmp_path / "a.pth", "kuangli")


def test_nets_of_sub_models(tmp_path, monkeypatch):
    monkeypatch.setattr(nets, "FLAT_BLOCKS", 2)
    monkeypatch.setattr(nets, "GROUP_BLOCKS", 2)
    assert_sub_models_there_and_back(8, tmp_path)


@pytest.mark.slow
def test_deep_nets(tmp_path):
    assert_sub_models_there_and_back(116, tmp_path)


def assert_sub_models_there_and_back(depth, folder):
    model = build_resnet(depth=depth, widths=(2, 4, 8))
    assert any(isinstance(layer, keras.Model) for layer in model.layers)
    path = folder / "net.safetensors"
    save_torch_checkpoint(model, path, "akamaster")
    assert_same_weights(model, load_torch_checkpoint(path))
