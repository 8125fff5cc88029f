"""Repositories on the Hugging Face Hub as local folders."""

from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from .formats import CONFIG_FILE, PREPROCESSOR_FILE, WEIGHTS_FILE


def local_or_downloaded(source: str | Path, **settings: Any) -> Path:
    """A local path as it is; of OWNER/NAME, the folder that the repository's configuration and weights are in.

    `settings` are those of `hf_hub_download`. Raises FileNotFoundError for neither, and ConnectionError where the Hub
    gave no such repository.
    """
    if Path(source).exists():
        return Path(source)
    repository = str(source)
    owner, slash, name = repository.partition("/")
    if not (owner.strip(".") and slash and name) or "/" in name:
        raise FileNotFoundError(f"{repository}: expected a folder, a file or OWNER/NAME on the Hugging Face Hub")
    reason = _no_answer()
    if reason is not None:
        settings["local_files_only"] = True  # what was downloaded before
    try:
        hf_hub_download(repository, CONFIG_FILE, **settings)
        with suppress(EntryNotFoundError, LocalEntryNotFoundError):  # not every repository says how to resize images
            hf_hub_download(repository, PREPROCESSOR_FILE, **settings)
        return Path(hf_hub_download(repository, WEIGHTS_FILE, **settings)).parent
    except Exception as error:  # the client raises kinds of its own and of its HTTP library
        reason = reason or str(error).split("\n")[0] or type(error).__name__
        raise ConnectionError(
            f"{repository} is no local folder, and could not be had from the Hugging Face Hub ({reason}); fetch "
            f"{CONFIG_FILE}, {PREPROCESSOR_FILE} and {WEIGHTS_FILE} from {constants.ENDPOINT}/{repository} elsewhere, "
            "put them into a folder, and name that"
        ) from error


def _no_answer() -> str | None:
    """Why the Hub does not answer; None if it does. Its client would retry for half a minute, with a line for each."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=10):
            return None
    except HTTPError:  # an answer
        return None
    except OSError as error:
        return str(getattr(error, "reason", error))
