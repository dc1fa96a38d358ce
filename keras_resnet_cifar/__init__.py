"""CIFAR ResNets in Keras 3 that you can trust.

    import keras_resnet_cifar as krc

    data = krc.load_dataset("cifar10", validation=5000)
    model = krc.build_resnet("resnet20", num_classes=10)
    run = krc.train(model, data, recipe="paper", output_dir="runs/r20")

Names are imported when they are first used, so that importing the package costs
next to nothing and the command line answers at once.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_resnet_cifar.data.augmentation import (
        RandomCutout,
        RandomPadCrop,
        RandomResizedCrop,
    )
    from keras_resnet_cifar.data.load import Dataset, Split, load_dataset
    from keras_resnet_cifar.errors import (
        Diverged,
        ExportFailed,
        InputError,
        Stopped,
    )
    from keras_resnet_cifar.evaluation.evaluate import evaluate, logits_of
    from keras_resnet_cifar.evaluation.metrics import Evaluation
    from keras_resnet_cifar.export.export import (
        Export,
        export_model,
        export_saved_model,
    )
    from keras_resnet_cifar.finetuning.backbones import BACKBONES
    from keras_resnet_cifar.finetuning.finetune import (
        build_finetuned,
        finetune,
        freeze_backbone,
    )
    from keras_resnet_cifar.models.architectures import list_architectures
    from keras_resnet_cifar.models.normalization import input_normalization
    from keras_resnet_cifar.models.resnet import build_resnet
    from keras_resnet_cifar.pytorch.checkpoints import (
        load_torch_checkpoint,
        save_torch_checkpoint,
    )
    from keras_resnet_cifar.training import schedules
    from keras_resnet_cifar.training.optimizers import CoupledAdam, CoupledSGD
    from keras_resnet_cifar.training.recipes import RECIPES, Recipe, get_recipe
    from keras_resnet_cifar.training.train import Run, train

try:
    __version__ = version("keras_resnet_cifar")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"

# Module -> its public names; a module itself where there are none.
_HOMES: dict[str, tuple[str, ...]] = {
    "data.augmentation": ("RandomCutout", "RandomPadCrop", "RandomResizedCrop"),
    "data.load": ("Dataset", "Split", "load_dataset"),
    "errors": ("Diverged", "ExportFailed", "InputError", "Stopped"),
    "evaluation.evaluate": ("evaluate", "logits_of"),
    "evaluation.metrics": ("Evaluation",),
    "export.export": ("Export", "export_model", "export_saved_model"),
    "finetuning.backbones": ("BACKBONES",),
    "finetuning.finetune": ("build_finetuned", "finetune", "freeze_backbone"),
    "models.architectures": ("list_architectures",),
    "models.normalization": ("input_normalization",),
    "models.resnet": ("build_resnet",),
    "pytorch.checkpoints": ("load_torch_checkpoint", "save_torch_checkpoint"),
    "training.optimizers": ("CoupledAdam", "CoupledSGD"),
    "training.recipes": ("RECIPES", "Recipe", "get_recipe"),
    "training.schedules": (),
    "training.train": ("Run", "train"),
}
_HOME_OF = {
    name: home
    for home, names in _HOMES.items()
    for name in names or (home.rpartition(".")[2],)
}

__all__ = [
    "__version__",
    *sorted(_HOME_OF),
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOME_OF[name]}")
    return getattr(home, name, home)


def __dir__() -> list[str]:
    return __all__
