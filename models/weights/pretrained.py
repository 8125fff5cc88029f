"""Published weights: where they are, and how to know that they are what they should be.

Deformable DETR is fetched from its authors' repositories on the Hugging Face Hub, each at one revision and held
against the SHA-256 of its file: both as LibreYOLO recorded them (its provenance file of deformable_detr, which loaded
all five into the official code). DETR is fetched from its authors' server as their ``hubconf.py`` does; the name of
each file ends in the first eight digits of its SHA-256, which PyTorch's own downloads are checked by. Their
repositories on the Hub hold the same weights under other names. Revisions and hashes of those are not known here, so
nothing is fetched from them.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch
from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from .formats import WEIGHTS_FILE

_FACEBOOK = "https://dl.fbaipublicfiles.com/detr/"


@dataclass(frozen=True)
class Published:
    """One file of weights, trained on COCO with its 91 category ids as classes."""

    repository: str | None
    """On the Hugging Face Hub."""
    sha256: str
    """Of the file that is fetched, in hex, whole or its first digits."""
    revision: str | None = None
    """The commit of `repository` that is fetched; None where a `url` is fetched instead."""
    url: str | None = None

    @property
    def address(self) -> str:
        """Where a browser finds the file."""
        return self.url or f"https://huggingface.co/{self.repository}/resolve/{self.revision}/{WEIGHTS_FILE}"


PUBLISHED = {
    "deformable_detr_r50_single_scale": Published(
        "SenseTime/deformable-detr-single-scale",
        "82eeb57bbcdd02408afc53d5f5c874e3a7f27b5034194ae2c4475d06fceaa59b",
        revision="e880a4ca7bbe47b33d37ed90e2948efbbdad0d44",
    ),
    "deformable_detr_r50_single_scale_dc5": Published(
        "SenseTime/deformable-detr-single-scale-dc5",
        "e71afa5f5900e2e769275156494195508efcadaab4275b0cd4c80f10369dc090",
        revision="c23332913d0ae1a8c98725e308eccba65a5933cc",
    ),
    "deformable_detr_r50": Published(
        "SenseTime/deformable-detr",
        "caf1e3e61283c6ce35cd2d9adaa7033cf40997d4dfe434003bcdb9085cc8cf9b",
        revision="83ecd26945199939cb82806f988debdb71e6f43e",
    ),
    "deformable_detr_r50_refine": Published(
        "SenseTime/deformable-detr-with-box-refine",
        "4113700fe8aade398808424b7c5c1304cfbf886adc6450a6ca5d50a702be3373",
        revision="2e9e461623a8fdc296e19666c46c8a4389a3a6fe",
    ),
    "deformable_detr_r50_two_stage": Published(
        "SenseTime/deformable-detr-with-box-refine-two-stage",
        "411bb4238a834d40fff651b1b5b7d6dd80c2dd28be1747eec7b6918674e85de6",
        revision="e74bff70d69f3e825f6cefaf179bfba707f92054",
    ),
    "detr_r50": Published("facebook/detr-resnet-50", "e632da11", url=f"{_FACEBOOK}detr-r50-e632da11.pth"),
    "detr_r50_dc5": Published("facebook/detr-resnet-50-dc5", "f0fb7ef5", url=f"{_FACEBOOK}detr-r50-dc5-f0fb7ef5.pth"),
    "detr_r101": Published("facebook/detr-resnet-101", "2c7b67e5", url=f"{_FACEBOOK}detr-r101-2c7b67e5.pth"),
    "detr_r101_dc5": Published(
        "facebook/detr-resnet-101-dc5", "a2e86def", url=f"{_FACEBOOK}detr-r101-dc5-a2e86def.pth"
    ),
    "detr_demo": Published(None, "da2a99e9", url=f"{_FACEBOOK}detr_demo-da2a99e9.pth"),
}


def published_of(name: str, argument: str = "pretrained") -> Published:
    """The published weights of a model. Raises ValueError where there are none, with the names that have some."""
    if name not in PUBLISHED:
        raise ValueError(f"{argument}: no weights of {name} are known; there are those of {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


def fetch(name: str, argument: str = "pretrained", by: str = "pretrained=PATH") -> Path:
    """The file of a model's published weights, downloaded unless it is there already, and checked either way.

    It goes to the cache of `torch.hub` (``TORCH_HOME``); the Hub's own cache is looked into, too, and its mirrors
    (``HF_ENDPOINT``) and ``HF_HUB_OFFLINE`` hold.

    Args:
        name: of `list_models`.
        argument: what asked for the weights, for messages.
        by: how the same file is named where it was fetched elsewhere, for messages.

    Raises:
        ValueError: none are published, or the file is not the one that was.
        ConnectionError: it is neither here nor to be had.
    """
    published = published_of(name, argument)
    try:
        file = _from_url(published, published.url) if published.url else _from_hub(published)
    except (OSError, RuntimeError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ConnectionError(
            f"{argument}: the weights of {name} could not be downloaded from {published.address} ({reason}); "
            f"fetch that file elsewhere, and put it at {_place(published)}, or name it: {by}"
        ) from error
    found = _sha256(file)
    if not found.startswith(published.sha256):
        raise ValueError(
            f"{argument}: {file} is not the published file of {name}: expected SHA-256 {published.sha256}, got "
            f"{found}; remove it to have {published.address} fetched again"
        )
    return file


def _from_hub(published: Published) -> Path:
    repository = str(published.repository)
    cached = try_to_load_from_cache(repository, WEIGHTS_FILE, revision=published.revision)
    if isinstance(cached, str):
        return Path(cached)
    # not by the Hub's client: without a network it retries for half a minute, with a line for each
    return _from_url(published, hf_hub_url(repository, WEIGHTS_FILE, revision=published.revision))


def _place(published: Published) -> Path:
    """Where the file is kept, in the folder that torchvision's downloads go to."""
    if published.url is None:
        name = f"{str(published.repository).split('/')[1]}-{published.sha256[:8]}.safetensors"
    else:
        name = os.path.basename(urlparse(published.url).path)
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _from_url(published: Published, url: str) -> Path:
    file = _place(published)
    if not file.exists():
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        file.parent.mkdir(parents=True, exist_ok=True)
        # whole and right, or not at all
        torch.hub.download_url_to_file(url, str(file), hash_prefix=published.sha256, progress=False)
    return file


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def coco_names() -> list[str]:
    """Names of the 91 classes, which are COCO's category ids; of its gaps, ``N/A``."""
    return ["N/A", *FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]]  # there the first is background
