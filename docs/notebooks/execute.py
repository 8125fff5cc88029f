"""Makes the outputs of the notebooks anew, from their .py files: ``python docs/notebooks/execute.py [NAME ...]``.

Two detectors are needed for outputs worth looking at: a Deformable DETR, which ``msdeform demo`` trains, and a DETR,
which detr_attention trains for longer than it does for a reader. Both stay in ``made/`` for the next time.
"""

import argparse
import base64
import io
import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

from msdeform.cli import main as run_msdeform

HERE = Path(__file__).resolve().parent
MADE = HERE / "made"
# the notebook, and which of its pictures stands in index.md
NOTEBOOKS = {"detr_attention": 0, "deformable_points": 1, "heads_off": 0, "your_own_data": 0, "transformers_model": 0}
DETR_STEPS = 1500
LARGEST = 600_000
"""Bytes of a committed notebook at the most."""
LARGE_PICTURE = 60_000
"""Characters in base64; charts, which are smaller, keep their colours."""
THUMBNAIL = (220, 160)


def trained() -> Path:
    """The folder of the run of ``msdeform demo``, which is started first if there is none."""
    demo = MADE / "demo"
    runs = sorted(demo.glob("training-*"))
    if not runs:
        run_msdeform(["demo", "--out", str(demo)])
        runs = sorted(demo.glob("training-*"))
    return runs[-1]


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
    environment = {"PYTHONPATH": str(HERE.parents[1])}
    detr = MADE / "detr"
    if name != "detr_attention":
        environment["MSDEFORM_RUN"] = str(trained())
    elif (detr / "best.pt").exists():
        environment["MSDEFORM_RUN"] = str(detr)
    else:
        environment["MSDEFORM_NOTEBOOK_STEPS"] = str(DETR_STEPS)
    notebook = with_small_pictures(execute(HERE / f"{name}.py", HERE, environment))
    text = nbformat.writes(notebook)
    if len(text) > LARGEST:
        raise ValueError(f"{name}: expected a notebook of at most {LARGEST:,} bytes, got {len(text):,}")
    (HERE / f"{name}.ipynb").write_text(text + "\n")
    thumbnail = Image.open(io.BytesIO(pictures(notebook)[NOTEBOOKS[name]])).convert("RGB")
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
