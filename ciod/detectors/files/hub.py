"""Models of ciod on the Hugging Face Hub, or another server of its kind (``HF_ENDPOINT``): ``hf:user/model``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ciod.core.errors import CiodError
from ciod.core.files import expanded, is_folder
from ciod.core.reading import SETTINGS, Unreadable, read_object
from ciod.detectors.query import hf

PREFIX = "hf:"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ("model.safetensors", "model.onnx")  # in a repository: the first that is there


def is_name(model: object) -> bool:
    """Whether a model is named by its repository."""
    return isinstance(model, (str, Path)) and str(model).startswith(PREFIX)


def is_of_transformers(name: str) -> bool:
    """Whether ``hf:…`` is a folder of transformers, or a repository of the Hub whose ``config.json`` is theirs.

    A repository that cannot be asked counts as one of ciod; ``local`` says what is wrong.
    """
    given = name.removeprefix(PREFIX)
    repo, _, revision = given.partition("@")
    if is_folder(expanded(given)) or not _REPOSITORY.fullmatch(repo) or hf.why_not_free(given):
        return True
    hub = package()
    try:
        found = hub.hf_hub_download(
            repo, "config.json", revision=revision or None, endpoint=os.environ.get("HF_ENDPOINT")
        )
        return "model_type" in read_object(Path(found), SETTINGS)
    except (
        hub.errors.HfHubHTTPError,
        hub.errors.EntryNotFoundError,
        hub.errors.HFValidationError,
        OSError,
        Unreadable,
    ):
        return False


def local(name: str | Path) -> Path:
    """The file of ``hf:user/model``, or of ``hf:user/model@REVISION``, which is fetched if it is not in the cache.
    Anything else is a path already.

    Raises:
        CiodError: huggingface_hub is not installed, there is no such model, or the server does not answer.
    """
    if not is_name(name):
        return Path(name)
    hub, endpoint = package(), os.environ.get("HF_ENDPOINT")
    repo, _, revision = str(name).removeprefix(PREFIX).partition("@")
    for file in FILES:
        try:
            found = hub.hf_hub_download(repo, file, revision=revision or None, endpoint=endpoint)
        except hub.errors.LocalEntryNotFoundError as e:
            why = str(e.__cause__ or e).splitlines()[0]
            raise CiodError(f"{name} is not in the cache, and the Hub does not answer: {why}") from e
        except hub.errors.EntryNotFoundError:
            continue
        except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError) as e:
            raise CiodError(
                f"There is no model {name} on the Hub, or it is private and HF_TOKEN is not set; write hf:user/model "
                "or hf:user/model@REVISION."
            ) from e
        except hub.errors.HFValidationError as e:
            raise CiodError(f"{name} is not the name of a model on the Hub; write hf:user/model.") from e
        except (hub.errors.HfHubHTTPError, OSError) as e:
            raise CiodError(f"{name} cannot be fetched from the Hub: {str(e).splitlines()[0]}") from e
        return Path(found)
    raise CiodError(f"{name} is not a model of ciod: it has neither {' nor '.join(FILES)}.")


def of_the_way(error: BaseException) -> bool:
    """Whether a server refused or does not answer. The client raises the errors of the HTTP library that it uses, which
    changed from requests to httpx, and has no name for them."""
    libraries = ("requests", "httpx", "httpcore")
    return isinstance(error, (package().errors.HfHubHTTPError, OSError)) or any(
        kind.__module__.startswith(libraries) for kind in type(error).__mro__
    )


def package() -> Any:
    """``huggingface_hub``. Raises CiodError where it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as e:
        raise CiodError("huggingface_hub is not installed: pip install 'ciod[hub]'") from e
    return huggingface_hub
