"""The licence of each package that MSDeform runs on. Run as a module, this writes the table of docs/licences.md anew:
python -m tests.house.supply.licences
"""

import re
import sys
from importlib.metadata import PackageMetadata, metadata

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from tests.house.project import ROOT
from tests.house.supply.closure import wanted_by

PAGE = ROOT / "docs" / "licences.md"
NVIDIA = "LicenseRef-NVIDIA-Proprietary"
# what a dependency may have; the page says the same in words
ACCEPTED = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT"),
    *("MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib", "LicenseRef-Matplotlib", "LicenseRef-None-Stated", NVIDIA),
}
# read from the licence's text, where the metadata hold no expression and their words fit several licences
READ = {
    "contourpy": "BSD-3-Clause",
    "cuda-toolkit": "LicenseRef-None-Stated",  # holds no file but its metadata, which name other packages
    "cycler": "BSD-3-Clause",
    "faster-coco-eval": "Apache-2.0",
    "jinja2": "BSD-3-Clause",
    "kiwisolver": "BSD-3-Clause",
    "matplotlib": "LicenseRef-Matplotlib",  # its own, after that of Python
    "mpmath": "BSD-3-Clause",
    "nvidia-cusparselt-cu13": NVIDIA,  # "NVIDIA Proprietary Software"
    "nvidia-nvtx": "Apache-2.0 WITH LLVM-exception",  # the classifier says proprietary, the licence's text does not
    "protobuf": "BSD-3-Clause",
    "pycocotools": "BSD-2-Clause",  # "FreeBSD"
    "scipy": "BSD-3-Clause",
    "semantic-version": "BSD-2-Clause",
    "sympy": "BSD-3-Clause",
    "torchvision": "BSD-3-Clause",
}
CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}


def stated(package: PackageMetadata) -> str | None:
    """The SPDX expression that a package's metadata amount to; None where they hold none or are not clear."""
    for text in (package.get("License-Expression"), package.get("License")):
        try:
            return canonicalize_license_expression(text or "")
        except InvalidLicenseExpression:
            continue
    classifiers = [line.rpartition(" :: ")[2] for line in package.get_all("Classifier", []) if "License ::" in line]
    return CLASSIFIERS.get(classifiers[0]) if len(classifiers) == 1 else None


def licence(name: str) -> str | None:
    """The SPDX expression of an installed package's licence; None where neither its metadata nor READ say it."""
    return stated(metadata(name)) or READ.get(name)


def parts(expression: str) -> set[str]:
    """The single licences in an expression."""
    return {part.strip("() ") for part in re.split(r" (?:AND|OR) ", expression)}


def table() -> dict[str, tuple[str, str]]:
    """Name -> licence and who wants it, as docs/licences.md has them."""
    rows = re.findall(r"^\| ([\w.-]+) \| ([^|]+) \| ([\w, ]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: (expression, groups) for name, expression, groups in rows if name != "package"}


def main() -> int:
    """Writes the table; a package that other Pythons or platforms need keeps its row. Exit status."""
    rows = {name: (licence(name) or "", ", ".join(groups)) for name, groups in wanted_by().items()}
    unknown = [name for name, (expression, _) in rows.items() if not expression]
    if unknown:
        print(f"licences: no licence in the metadata of {', '.join(unknown)}: read its text, and add it to READ")
        return 1
    rows = dict(sorted({**table(), **rows}.items()))
    lines = ["| package | licence | needed by |", "|---|---|---|"]
    lines += [f"| {name} | {expression} | {groups} |" for name, (expression, groups) in rows.items()]
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition("<!-- licences -->\n")
    after = rest.partition("<!-- end of licences -->")[2]
    made = "\n".join(lines)
    PAGE.write_text(f"{before}<!-- licences -->\n{made}\n<!-- end of licences -->{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
