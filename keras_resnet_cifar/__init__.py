"""CIFAR ResNets in Keras 3 that you can trust.

    import keras_resnet_cifar as krc

    data = krc.load_dataset("cifar10", validation=5000)
    model = krc.build_resnet("resnet20", num_classes=10)
    run = krc.train(model, data, recipe="paper", output_dir="runs/r20")

Names are imported when first used, so that importing the package costs next to
nothing and the command line answers at once.
"""

import importlib

_HOMES = {
    "models.architectures": ("list_architectures",),
    "data.augmentation": ("RandomCutout", "RandomPadCrop", "RandomResizedCrop"),
    "finetuning.backbones": ("BACKBONES",),
    "data.load": ("Dataset", "Split", "load_dataset"),
    "errors": ("ExportFailed", "InputError"),
    "evaluation.evaluate": ("evaluate", "logits_of"),
    "export.export": ("Export", "export_model", "export_saved_model"),
    "finetuning.finetune": ("build_finetuned", "finetune", "freeze_backbone"),
    "evaluation.metrics": ("Evaluation",),
    "models.resnet": ("build_resnet",),
    "models.normalization": ("input_normalization",),
    "training.optimizers": ("CoupledAdam", "CoupledSGD"),
    "training.recipes": ("RECIPES", "Recipe", "get_recipe"),
    "pytorch.checkpoints": ("load_torch_checkpoint", "save_torch_checkpoint"),
    "training.train": ("Run", "train"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOME_OF[name]}")
    return getattr(home, name)


def __dir__():
    return __all__
