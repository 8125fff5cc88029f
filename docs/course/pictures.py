"""Draws the pictures of the course: ``python docs/course/pictures.py [FOLDER [NAME ...]]``.

Without arguments it draws all of them, beside this file. Their numbers are those of the steps, which are imported. The
same versions of matplotlib and Triton draw the same files.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from drawing import kernels, operator, sampling

PICTURES = {
    "01-one-pixel": sampling.one_pixel,
    "02-bilinear": sampling.bilinear,
    "03-many-points": sampling.many_points,
    "04-heads-and-levels": operator.heads_and_levels,
    "05-reference": operator.reference,
    "06-gradient": operator.gradient,
    "07-first-kernel": kernels.first_kernel,
    "08-lanes-share-points": kernels.lanes_share_points,
    "09-backward": kernels.backward,
    "10-ptx-and-bounds": kernels.ptx_and_bounds,
}


def main(folder: Path, names: list[str]) -> None:
    for name in names or PICTURES:
        PICTURES[name]()
        plt.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
        plt.close("all")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent, sys.argv[2:])
