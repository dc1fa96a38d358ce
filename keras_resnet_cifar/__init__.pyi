from .data.augmentation import RandomCutout as RandomCutout
from .data.augmentation import RandomPadCrop as RandomPadCrop
from .data.augmentation import RandomResizedCrop as RandomResizedCrop
from .data.load import Dataset as Dataset
from .data.load import Split as Split
from .data.load import load_dataset as load_dataset
from .errors import Diverged as Diverged
from .errors import ExportFailed as ExportFailed
from .errors import InputError as InputError
from .errors import Stopped as Stopped
from .evaluation.calibration import fit_temperature as fit_temperature
from .evaluation.corruptions import corrupt as corrupt
from .evaluation.evaluate import evaluate as evaluate
from .evaluation.evaluate import logits_of as logits_of
from .evaluation.grad_cam import grad_cam as grad_cam
from .evaluation.metrics import Evaluation as Evaluation
from .export.export import Export as Export
from .export.export import export_model as export_model
from .export.export import export_saved_model as export_saved_model
from .finetuning.backbones import BACKBONES as BACKBONES
from .finetuning.finetune import build_finetuned as build_finetuned
from .finetuning.finetune import finetune as finetune
from .finetuning.finetune import freeze_backbone as freeze_backbone
from .finetuning.inference import load_model as load_model
from .finetuning.inference import predict as predict
from .models.architectures import list_architectures as list_architectures
from .models.normalization import input_normalization as input_normalization
from .models.resnet import build_resnet as build_resnet
from .models.saving import save_model as save_model
from .models.torch_checkpoints import (
    load_torch_checkpoint as load_torch_checkpoint,
)
from .models.torch_checkpoints import (
    save_torch_checkpoint as save_torch_checkpoint,
)
from .models.weights import list_weights as list_weights
from .training import schedules as schedules
from .training.hub import push_to_hub as push_to_hub
from .training.muon import Muon as Muon
from .training.optimizers import CoupledAdam as CoupledAdam
from .training.optimizers import CoupledSGD as CoupledSGD
from .training.recipes import RECIPES as RECIPES
from .training.recipes import Recipe as Recipe
from .training.recipes import get_recipe as get_recipe
from .training.train import Run as Run
from .training.train import train as train

__version__: str
