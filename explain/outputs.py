"""Where explanations are written when no folder is named: beside the run that they explain."""

import hashlib
import json
import os
from pathlib import Path


def default_folder(checkpoint: Path, name: str) -> Path:
    """``name`` in the folder of the run that a checkpoint is of, or in the current folder for other weights."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    return folder / name if (folder / "log.jsonl").is_file() else Path(name)


def check_writable(folder: Path) -> Path:
    """The folder. Raises ValueError where it is not there and cannot be made, or cannot be written to.

    So that this is told before what takes long, and nothing is made yet.
    """
    nearest = folder.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    reason = "" if nearest.is_dir() else f"{nearest} is not a folder"
    if not reason and not os.access(nearest, os.W_OK | os.X_OK):
        reason = f"no permission to write in {nearest}"
    if reason:
        raise ValueError(f"out: cannot write to {folder}: {reason}; name another folder with --out")
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
            return check_writable(folder), name
        number += 1


def _explained(file: Path) -> str | None:
    """Digest of the image that an explanation is of; None where there is no explanation, or none with a digest."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))["image_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
