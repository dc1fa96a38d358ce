"""Access to the Hugging Face Hub with its client, which is an extra."""

import os
import re
from pathlib import Path
from typing import Any

from keras_resnet_cifar.errors import InputError, explained

MODEL = "last.keras"  # the model's file in a repository


def import_hub() -> Any:
    """Returns the module `huggingface_hub`."""
    remedy = "pip install 'keras_resnet_cifar[huggingface]'"
    with explained("the Hugging Face Hub needs huggingface_hub", remedy):
        import huggingface_hub

        return huggingface_hub


def check_repository(name: Any) -> None:
    """Raises `InputError` unless a name has the form `"user/name"`."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise InputError(
            f"{name!r} is no repository of the Hugging Face Hub: give a name "
            "such as user/name"
        )


def fetch_model(repository: str) -> Path:
    """Returns the `.keras` file of a repository, in the client's cache.

    The repository is `"user/name"`, as created by `push_to_hub`.
    """
    check_repository(repository)
    client = import_hub()
    with explained(
        f"cannot download {MODEL} of {repository} from the Hugging Face Hub",
        "check the name, the network, HF_ENDPOINT and HF_TOKEN",
    ):
        endpoint = os.environ.get("HF_ENDPOINT")
        return Path(
            client.hf_hub_download(repository, MODEL, endpoint=endpoint)
        )
