"""Publishes a run on the Hugging Face Hub."""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from keras_resnet_cifar.data.huggingface import REPOSITORIES
from keras_resnet_cifar.errors import InputError, explained
from keras_resnet_cifar.files import check_zip, with_checksum, write_json
from keras_resnet_cifar.models.architectures import resolve
from keras_resnet_cifar.models.hub import (
    MODEL,
    check_repository,
    import_hub,
)
from keras_resnet_cifar.models.weights import HUB
from keras_resnet_cifar.training.model_card import LAST, model_card
from keras_resnet_cifar.training.run_directory import RunDirectory
from keras_resnet_cifar.training.train import Run


def push_to_hub(
    run: str | Path | Run,
    repository: str,
    *,
    private: bool | None = None,
    license: str = "apache-2.0",
) -> str:
    """Publishes a finished run on the Hugging Face Hub.

    The repository gets last.keras, config.json, metrics.json, history.csv,
    curves.png and a model card with a `model-index`. It is created if
    necessary; the client's token is used (`hf auth login` or `HF_TOKEN`).
    `build_resnet(arch, weights="hf://user/name")` loads the weights.

    Args:
        run: A run directory, or a `Run` that has one.
        repository: `"user/name"`.
        private: Whether a new repository is private; by default, the Hub's
            default.
        license: The Hub's identifier of the weights' licence.

    Returns:
        The URL of the repository.

    Raises:
        InputError: The run is not finished or damaged, `repository` has
            another form, `huggingface_hub` (extra `huggingface`) is not
            installed, or the Hub refuses.

    Examples:
        >>> push_to_hub("runs/r20", "user/resnet20-cifar10")
    """
    check_repository(repository)
    client = import_hub()
    path = run.directory if isinstance(run, Run) else Path(run)
    if path is None:
        raise InputError("the run has no directory: train it with output_dir=")
    directory = RunDirectory(path)
    config = directory.read_config()
    config["request"].pop("data_dir", None)
    for part in (config, config["dataset"], config["request"]):
        for key in {"name", "weights"} & part.keys():
            if os.path.isabs(part[key] or ""):  # a folder of this machine
                part[key] = Path(part[key]).name
    with tempfile.TemporaryDirectory() as folder:
        with explained(
            f"{path} is not a finished run", "resume it, or restore its files"
        ):
            metrics = json.loads(directory.metrics.read_text("utf-8"))
            for name in ("last", "metrics", "history", "curves"):
                shutil.copy(getattr(directory, name), folder)
            check_zip(Path(folder, MODEL))
            card = _card(client, config, metrics["last"], repository, license)
        write_json(Path(folder, "config.json"), with_checksum(config))
        card.save(Path(folder, "README.md"))
        with explained(
            f"cannot publish {path} as {repository}",
            "check the name, the network, HF_ENDPOINT and HF_TOKEN",
        ):
            endpoint = os.environ.get("HF_ENDPOINT")
            api = client.HfApi(endpoint, library_name="keras_resnet_cifar")
            made = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                commit_message=f"Publish {config['arch']}",
            )
    return str(made)


def _card(
    client: Any,
    config: dict[str, Any],
    last: dict[str, Any],
    repository: str,
    license: str,
) -> Any:
    """Returns the `ModelCard` of a run; its results are in `model-index`.

    `last` has the metrics of the last epoch.
    """
    data = Path(config["dataset"]["name"]).name
    published = REPOSITORIES.get(data, (None,))[0]
    results = [
        client.EvalResult(
            task_type="image-classification",
            dataset_type=published or data,
            dataset_name=data,
            dataset_split="test",
            metric_type=kind,
            metric_name=name,
            metric_value=last["test"][key],
        )
        for kind, name, key in (
            ("accuracy", "top-1 of the last epoch", "top1"),
            ("expected_calibration_error", "15 bins", "ece"),
        )
    ]
    header = client.ModelCardData(
        license=license,
        library_name="keras",
        pipeline_tag="image-classification",
        tags=["keras", "resnet", config["arch"]],
        datasets=published and [published],
        model_name=repository.rpartition("/")[2],
        eval_results=results,
    )
    use = f"""\
    import huggingface_hub, keras
    path = huggingface_hub.hf_hub_download("{repository}", "{MODEL}")
    model = keras.saving.load_model(path)
"""
    with contextlib.suppress(InputError):  # not for fine-tuned or own models
        resolve(config["arch"])
        use = f"""\
    import keras_resnet_cifar as krc
    model = krc.build_resnet("{config["arch"]}", weights="{HUB}{repository}")

The file contains stock Keras layers only, and loads without the package:

{use}"""
    text = model_card(config, last["epoch"], {"last": last}, use, LAST)
    return client.ModelCard(f"---\n{header.to_yaml()}\n---\n\n{text}")
