"""A fine-tuning run on disk: its plan, and a run directory for each phase."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from keras_resnet_cifar.errors import InputError, one_line
from keras_resnet_cifar.files import write_json
from keras_resnet_cifar.training.recipes import Recipe, get_recipe
from keras_resnet_cifar.training.run_directory import RunDirectory

PHASES = ("head", "tuned")  # in order


@dataclass(frozen=True)
class PhasedDirectory:
    """The folder of a fine-tuning run.

    Attributes:
        path: The folder. Each phase is an ordinary run in a folder of its own
            there; finetune.json, the plan, is what repeats both.
    """

    path: Path

    @property
    def plan(self):
        return self.path / "finetune.json"

    def phase(self, name):
        """The `RunDirectory` of a phase of `PHASES`."""
        return RunDirectory(self.path / name)

    def begun(self):
        """Names of the phases that have begun, in order."""
        return [name for name in PHASES if self.phase(name).config.is_file()]

    def newest(self):
        """The `RunDirectory` of the last phase that has begun.

        Raises:
            InputError: None has.
        """
        if not self.begun():
            raise InputError(
                f"{self.path} holds no phase that has begun: start a new run "
                "in another --output-dir"
            )
        return self.phase(self.begun()[-1])

    def check_unused(self):
        """Raises `InputError` if the folder holds anything."""
        RunDirectory(self.path).check_unused()

    def write_plan(self, plan):
        """Writes the keyword arguments of `finetune` that repeat the run."""
        write_json(self.plan, _plain(plan))

    def read_plan(self):
        """Returns what `write_plan` wrote.

        Raises:
            InputError: No phase has begun, or the plan cannot be read.
        """
        try:
            plan = json.loads(self.plan.read_text(encoding="utf-8"))
            return plan | {"recipe": get_recipe(Recipe(**plan["recipe"]))}
        except FileNotFoundError:
            raise InputError(
                f"{self.path} holds no fine-tuning run (no {self.plan.name}): "
                "name the --output-dir of an earlier one"
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"cannot read {self.plan} ({one_line(error)}): restore it or "
                "start a new run"
            ) from error

    def check_same(self, plan):
        """Raises `InputError` if a run is resumed by another plan."""
        held, plan = _plain(self.read_plan()), _plain(plan)
        different = [name for name in held if held[name] != plan.get(name)]
        if different:
            raise InputError(
                f"cannot resume with another {different[0]} than "
                f"{self.plan} has: leave the option out, or start a new run "
                "in another --output-dir"
            )


def _plain(plan):
    """A plan as JSON gives it back."""
    return json.loads(json.dumps(plan | {"recipe": asdict(plan["recipe"])}))


def newest_run(path):
    """Returns the `RunDirectory` that a folder is, or its newest phase's."""
    phased = PhasedDirectory(path)
    return phased.newest() if phased.begun() else RunDirectory(path)
