"""Makes the outputs of the notebooks anew, from their .py files: ``python docs/notebooks/execute.py [NAME ...]``.

Two detectors are needed for outputs worth looking at: a Deformable DETR, which ``msdeform demo`` trains, and a DETR.
They are trained into ``made/`` if they are not there, which takes an hour or so on two cores.
"""

import argparse
import base64
import io
import os
import sys
from pathlib import Path

import jupytext
import nbformat
import torch
from nbclient import NotebookClient
from PIL import Image

import msdeform
from msdeform.cli import main as run_msdeform

HERE = Path(__file__).resolve().parent
MADE = HERE / "made"
# the notebook, whose detector it takes, and which of its pictures stands in index.md
NOTEBOOKS = {
    "detr_attention": ("detr", 1),
    "deformable_points": ("deformable", 1),
    "heads_off": ("deformable", 0),
    "your_own_data": (None, -1),
    "transformers_model": (None, -1),
}
LARGEST = 600_000
"""Bytes of a committed notebook at the most."""
LARGE_PICTURE = 60_000
"""Characters in base64; charts, which are smaller, keep their colours."""
THUMBNAIL = (220, 160)


def trained(kind: str) -> Path:
    """The folder of a training run of a detector, trained first if it is not there."""
    demo = MADE / "demo"
    runs = sorted(demo.glob("training-*"))
    if not runs:
        run_msdeform(["demo", "--out", str(demo)])
        runs = sorted(demo.glob("training-*"))
    if kind == "deformable":
        return runs[-1]
    run = MADE / "detr"
    if not (run / "best.pt").exists():
        # a DETR learns slowly from random weights: it starts from the backbone of the other detector
        backbone = MADE / "backbone.pt"
        torch.save(msdeform.load_model(runs[-1]).body.state_dict(), backbone)
        recipe = "--model detr_mini --override focal=true enc_layers=2 --image-size 192 --augment flip --workers 0"
        recipe += " --cache-images pixels --batch-size 8 --total-batch-size 8 --epochs 12 --schedule cosine"
        recipe += " --warmup-steps 100 --lr 5e-4 --lr-backbone 2e-4 --eval-every 2 --no-tensorboard"
        places = ["--data", str(next(demo.glob("data-*"))), "--backbone-weights", str(backbone), "--out", str(run)]
        run_msdeform(["train", *recipe.split(), *places])
    return run


def execute(script: Path, folder: Path, environment: dict[str, str], timeout: int = 3600) -> nbformat.NotebookNode:
    """The notebook of a .py file, run in `folder`; raises CellExecutionError, with the cell, where one fails."""
    notebook = jupytext.read(script)
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    # tqdm misses a package for its progress bars, which no notebook shows; its warning has a path of this machine
    client.execute(env={**os.environ, "PYTHONWARNINGS": "ignore:IProgress not found", **environment})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran, which differs every time
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata.pop("language_info", None)  # the version of this machine's Python
    return notebook


def pictures(notebook: nbformat.NotebookNode) -> list[bytes]:
    """The PNG files in a notebook's outputs, in order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [base64.b64decode(one.data["image/png"]) for one in outputs if "image/png" in one.get("data", {})]


def with_small_pictures(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook, with its large PNG files reduced to 256 colours, which takes a sixth of the bytes."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png", "")
            if len(picture) > LARGE_PICTURE:
                colours = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
                reduced = colours.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
                small = io.BytesIO()
                reduced.save(small, "PNG", optimize=True)
                output.data["image/png"] = base64.b64encode(small.getvalue()).decode()
    return notebook


def make(name: str) -> None:
    """Writes one notebook, with outputs, and its thumbnail."""
    kind, shown = NOTEBOOKS[name]
    environment = {"PYTHONPATH": str(HERE.parents[1])}
    if kind is not None:
        environment["MSDEFORM_RUN"] = str(trained(kind))
    notebook = with_small_pictures(execute(HERE / f"{name}.py", HERE, environment))
    text = nbformat.writes(notebook)
    if len(text) > LARGEST:
        raise ValueError(f"{name}: expected a notebook of at most {LARGEST:,} bytes, got {len(text):,}")
    (HERE / f"{name}.ipynb").write_text(text + "\n")
    thumbnail = Image.open(io.BytesIO(pictures(notebook)[shown])).convert("RGB")
    thumbnail.thumbnail(THUMBNAIL)
    (HERE / "thumbnails").mkdir(exist_ok=True)
    thumbnail.save(HERE / "thumbnails" / f"{name}.png", optimize=True)
    print(f"wrote {name}.ipynb: {len(text):,} bytes, {len(pictures(notebook))} pictures")


def run(arguments: list[str]) -> None:
    """Makes the named notebooks, or all."""
    parser = argparse.ArgumentParser(description="Make the outputs of the notebooks anew.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NOTEBOOKS)}; all when not given")
    names = parser.parse_args(arguments).names
    for name in names:
        if name not in NOTEBOOKS:
            parser.error(f"expected names of {', '.join(NOTEBOOKS)}, got {name}")
    for name in names or NOTEBOOKS:
        make(name)


if __name__ == "__main__":
    run(sys.argv[1:])
