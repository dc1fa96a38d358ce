"""A fine-tuning run on disk: its plan, and a run directory for each phase."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keras_resnet_cifar import files
from keras_resnet_cifar.errors import InputError, one_line
from keras_resnet_cifar.training.recipes import Recipe, get_recipe
from keras_resnet_cifar.training.run_directory import RunDirectory

PHASES = ("head", "tuned")  # in order
_PLAN = "finetune.json"


@dataclass(frozen=True)
class PhasedDirectory:
    """The folder `path` of a fine-tuning run.

    It holds the plan, finetune.json, and a run directory for each phase.
    """

    path: Path

    def phase(self, name: str) -> RunDirectory:
        """Returns the run directory of a phase of `PHASES`."""
        return RunDirectory(self.path / name)

    def started_phases(self) -> list[str]:
        """Returns the names of the phases that have started, in order."""
        return [name for name in PHASES if self.phase(name).config.is_file()]

    def newest(self) -> RunDirectory:
        """Returns the last phase that has started; `InputError` without one."""
        started = self.started_phases()
        if not started:
            raise InputError(
                f"no phase in {self.path} has started: start a new run in "
                "another folder"
            )
        return self.phase(started[-1])

    def check_unused(self) -> None:
        """Raises `InputError` if the folder holds more than a plan."""
        # A kill before the first phase leaves no run, but may leave hidden
        # files and folders next to the plan.
        if not self.path.is_dir() or any(
            path.name != _PLAN and not path.name.startswith(".")
            for path in self.path.iterdir()
        ):
            RunDirectory(self.path).check_unused()

    @contextlib.contextmanager
    def planned(self, plan: Mapping[str, Any]) -> Iterator[None]:
        """Writes a plan; removes it if the block ends before a phase starts."""
        with files.made_folder(self.path):
            self.write_plan(plan)
            try:
                yield
            finally:
                if not self.started_phases():
                    (self.path / _PLAN).unlink(missing_ok=True)

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Writes the keyword arguments of `finetune` that repeat the run."""
        recipe = asdict(plan["recipe"])
        files.write_json(
            self.path / _PLAN, files.with_checksum({**plan, "recipe": recipe})
        )

    def read_plan(self) -> dict[str, Any]:
        """Returns what `write_plan` wrote; `InputError` if that fails."""
        try:
            text = (self.path / _PLAN).read_text(encoding="utf-8")
            plan = files.check_checksum(json.loads(text))
            recipe = get_recipe(Recipe(**plan.get("recipe", {})))
            return plan | {"recipe": recipe}
        except FileNotFoundError:
            raise InputError(
                f"{self.path} holds no fine-tuning run (no {_PLAN}): give "
                "the folder of one"
            ) from None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise InputError(
                f"cannot read {self.path / _PLAN} ({one_line(error)}): restore "
                "it, or start a new run"
            ) from error


def newest_run(path: Path) -> RunDirectory:
    """Returns the run directory at a path, or the newest phase's in it."""
    phased = PhasedDirectory(path)
    return phased.newest() if phased.started_phases() else RunDirectory(path)
