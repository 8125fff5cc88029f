"""docs/serving.md and the Dockerfile: limits are those told, the command line is right, their packages are pinned."""

import json
import re
from pathlib import Path

from msdeform.cli import COMMANDS
from msdeform.train.serving.options import ServeOptions
from tests.house.project import ROOT
from tests.house.test_dependencies import NEWEST

MANUAL = (ROOT / "docs" / "serving.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def test_the_limits_are_the_defaults() -> None:
    usual = ServeOptions(source=Path("runs/mine"))
    assert f"`--max-bytes`, {usual.max_bytes:,}" in MANUAL
    assert f"`--max-pixels`, {usual.max_pixels:,}" in MANUAL
    assert f"`--max-queue`, {usual.max_queue} beside a batch" in MANUAL
    assert f"`--timeout`, {usual.timeout:g} seconds" in MANUAL


def test_the_container_starts_a_server_that_others_reach(tmp_path: Path) -> None:
    words = [json.loads(found) for found in re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", DOCKERFILE, re.MULTILINE)]
    program, name, *rest = [word for part in words for word in part]
    assert (program, name) == ("msdeform", "serve")
    line = [str(tmp_path) if word == "/model" else word for word in rest]
    options = COMMANDS["serve"].read(line, "msdeform serve")
    assert (options.source, options.host) == (tmp_path, "0.0.0.0")
    assert f"EXPOSE {options.port}\n" in DOCKERFILE
    assert f"http://127.0.0.1:{options.port}/ready" in DOCKERFILE
    assert DOCKERFILE.index("USER msdeform") < DOCKERFILE.index("ENTRYPOINT")


def test_the_container_s_packages_are_pinned() -> None:
    lines = re.findall(r"^RUN pip install .*constraints\.txt (.*)$", DOCKERFILE, re.MULTILINE)
    assert len(lines) == 2
    names = [word for line in lines for word in line.split() if not word.startswith(("-", "https:"))]
    assert {"torch", "fastapi", "uvicorn", "scipy"} <= {*names} <= NEWEST.keys()
