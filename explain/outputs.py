"""Where explanations are written when no folder is named: beside the run that they explain."""

import hashlib
import json
from pathlib import Path

from ..common.options import WrongValue, check_writable


def default_folder(checkpoint: Path, name: str) -> Path:
    """``name`` in the folder of the run that a checkpoint is of, or in the current folder for other weights."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    return folder / name if (folder / "log.jsonl").is_file() else Path(name)


def checked(folder: Path) -> Path:
    """The folder, not made yet. Raises ValueError where it cannot be written or made."""
    try:
        check_writable(folder, "folder")
    except WrongValue as error:
        raise ValueError(f"out: {error}") from None
    return folder


def digest_of(image: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(image, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def place_for(image: Path, out: Path | None, checkpoint: Path) -> tuple[Path, str]:
    """The folder for what is said of an image, and what the names of its files begin with.

    Of an image x.jpg those are ``explanations/x`` in the run's folder, and x. Where another image of that name has been
    explained there, it is x-2, and so on: two images do not overwrite each other. Raises ValueError where the folder
    cannot be written to.
    """
    own, number, stem = digest_of(image), 1, image.stem
    while True:
        name = stem if number == 1 else f"{stem}-{number}"
        folder = out or default_folder(checkpoint, "explanations") / name
        if _explained(folder / f"{name}-explanation.json") in (None, own):
            return checked(folder), name
        number += 1


def _explained(file: Path) -> str | None:
    """Digest of the image that an explanation is of; None where there is no explanation, or none with a digest."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))["image_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
