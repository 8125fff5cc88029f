"""``from_pretrained``, ``save_pretrained`` and ``push_to_hub`` of every detector, on the Hugging Face Hub's own mixin.

What is written is our folder format (`formats`): config.json and model.safetensors, and the Hub's README.md. What is
read, from a local folder or a repository, is that or transformers' own.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..inference.predictor import Predictor
from .formats import CONFIG_FILE, PREPROCESSOR_FILE, WEIGHTS_FILE, save_msdeform

D = TypeVar("D", bound="HubDetector")


class HubDetector(
    Predictor,
    PyTorchModelHubMixin,
    library_name="msdeform",
    pipeline_tag="object-detection",
    tags=["object-detection"],
    paper_url="https://arxiv.org/abs/2010.04159",
):
    """Gives a detector the Hub's methods. A family's own class refuses folders of another family."""

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin's further arguments would be the detector's parts
        cls: type[D],
        pretrained_model_name_or_path: str | Path,
        *,
        attn_backend: str = "auto",
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> D:
        """A detector with its weights and classes out of a folder or a repository on the Hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a local folder or file, as `loading.load_model` takes it, or OWNER/NAME.
            attn_backend: the operator's backend, held by every deformable attention.
            revision: branch, tag or commit of the repository; the others are `huggingface_hub.hf_hub_download`'s.

        Raises:
            ConnectionError: nothing there locally, and the Hub gave no such repository.
            FileNotFoundError, ValueError: as `loading.load_model`; or the detector is not of this class.
        """
        from .load import load_model

        path = Path(pretrained_model_name_or_path)
        if not path.exists():
            path = _download(
                str(pretrained_model_name_or_path),
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        model: Any = load_model(path, attn_backend=attn_backend)
        if not isinstance(model, cls):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a {type(model).__name__}, which is no {cls.__name__}; "
                "msdeform.from_pretrained takes any"
            )
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        from ..zoo import plain_config

        config = plain_config(self)  # type: ignore[arg-type]  # every detector is a Detector
        save_msdeform(save_directory, self.state_dict(), config, self.categories, self.input_size)


def from_pretrained(path_or_repository: str | Path, **settings: Any) -> Any:
    """A detector of any family out of a folder, file or repository on the Hub: see `HubDetector.from_pretrained`."""
    from ..families.detector import Detector

    return Detector.from_pretrained(path_or_repository, **settings)


def _download(repository: str, **settings: Any) -> Path:
    """The local folder of a repository's configuration and weights."""
    owner, slash, name = repository.partition("/")
    if not (owner.strip(".") and slash and name) or "/" in name:
        raise FileNotFoundError(f"{repository}: expected a folder, a file or OWNER/NAME on the Hugging Face Hub")
    try:
        hf_hub_download(repository, CONFIG_FILE, **settings)
        with suppress(EntryNotFoundError, LocalEntryNotFoundError):  # not every repository says how to resize images
            hf_hub_download(repository, PREPROCESSOR_FILE, **settings)
        return Path(hf_hub_download(repository, WEIGHTS_FILE, **settings)).parent
    except Exception as error:  # the client raises kinds of its own and of its HTTP library
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ConnectionError(
            f"{repository} is no local folder, and could not be had from the Hugging Face Hub ({reason}); "
            f"name a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        ) from error
