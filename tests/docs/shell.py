"""Command lines of the pages, and how each is run: as it stands, with words added that make it small."""

import contextlib
import http.client
import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msdeform.cli import main
from tests.docs.pages import Block, blocks, pages
from tests.house.project import ROOT

LIMIT = 240.0  # seconds that a command, or a server's start, may take
PROGRAMS = {
    "msdeform": "from msdeform.cli import main; raise SystemExit(main())",
    "torchrun": "from torch.distributed.run import main; main()",
    "pytest": "import pytest; raise SystemExit(pytest.main())",
    "pip": "from pip._internal.cli.main import main; raise SystemExit(main())",
}
RUN_AS_THEY_STAND = (*PROGRAMS, "python", "curl")
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(\S*)")

RULES: dict[str, Any] = tomllib.loads((Path(__file__).parent / "commands.toml").read_text())


@dataclass(frozen=True)
class Rule:
    """What is said of one line, or of all that begin with the same words."""

    line: str
    add: str = ""
    """words put after the line, which make it small or keep it from the network"""
    replace: Mapping[str, str] = field(default_factory=dict)
    """words of the line that stand for the reader's own"""
    files: Sequence[str] = ()
    """what must be there afterwards"""
    absent: Sequence[str] = ()
    """what the reader does not have yet, and is taken away before"""
    where: str = "data"
    """checkout: in a copy of this project; data: beside the reader's data"""
    slow: bool = False
    reason: str = ""
    """why it is not run"""


def _rules(kind: str) -> dict[str, Rule]:
    return {each["line"]: Rule(**each) for each in RULES[kind]}


LINES = _rules("line")
LISTED = _rules("listed")
BEGINNINGS = _rules("beginning")


@dataclass(frozen=True)
class Line:
    """A command of a page: without its comment, and in one line."""

    place: str
    text: str

    @property
    def program(self) -> str:
        """The text with the program's name alone: .venv/bin/msdeform is msdeform."""
        first, space, rest = self.text.partition(" ")
        return first.rpartition("/")[2] + space + rest

    def rule(self) -> Rule:
        """The line's own; or of those for lines that begin so, the one that says most; or none, as it stands."""
        for rules in (LISTED, LINES):
            if self.text in rules:
                return rules[self.text]
        fitting = [each for each in BEGINNINGS.values() if self.program.startswith(each.line)]
        return max(fitting, key=lambda each: len(each.line), default=Rule(self.text))

    def is_known(self) -> bool:
        """Is it of a program that is run as it stands, or does commands.toml say what to do?"""
        words = [word for word in self.text.split() if not ASSIGNMENT.fullmatch(word)]
        return not words or Path(words[0]).name in RUN_AS_THEY_STAND or self.text in LINES.keys() | LISTED.keys()


def lines(page: str) -> list[Line]:
    """Every command of the page's shell blocks, in order."""
    return [Line(block.place, text) for block in blocks(page, "sh") for text in _logical(block)]


def _logical(block: Block) -> list[str]:
    joined = block.text.replace("\\\n", " ").splitlines()
    bare = [re.sub(r"(^|\s+)#( .*)?$", "", line) for line in joined]
    # "..." at a line's end: and whatever else one has to say
    bare = [re.sub(r"\s\.\.\.$", "", line.rstrip()) for line in bare]
    return [" ".join(text.split()) for text in bare if text.strip()]


def every_line() -> list[Line]:
    return [line for page in pages() for line in lines(page)]


class Failed(AssertionError):
    """What a command answered that should have worked."""


class Reader:
    """One who types the commands of a page, one after the other, in a folder with data."""

    def __init__(self, data: Path, checkout: Path) -> None:
        """Reads in the folder ``data``; ``checkout`` is made when a command first needs it."""
        self.data, self.checkout = data, checkout
        self.variables: dict[str, str] = {}
        self.servers: list[subprocess.Popen[bytes]] = []
        self.port = 0
        _write_programs(data / ".venv" / "bin")

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.terminate()
        for server in self.servers:
            try:
                server.wait(LIMIT)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()

    def type(self, line: Line) -> str:
        """What the command printed. Raises Failed where it does not do what the page says."""
        rule = line.rule()
        if not line.is_known():
            raise Failed(f"{line.text}\nis of a program that commands.toml says nothing about")
        text = line.text
        for old, new in rule.replace.items():
            if old not in text:
                raise Failed(f"commands.toml replaces {old!r}, which is not in the line")
            text = text.replace(old, new)
        text = f"{text} {rule.add}".strip()
        folder = self._checkout() if rule.where == "checkout" else self.data
        if assigned := ASSIGNMENT.fullmatch(text):
            self.variables[assigned[1]] = self._expanded(assigned[2])
            return ""
        for name in rule.absent:
            shutil.rmtree(folder / name)
        said = self._run(text, folder)
        for name in rule.files:
            if not list(folder.glob(name)):
                raise Failed(f"{text}\ndid not write {name}; it printed\n{said}")
        return said

    def _checkout(self) -> Path:
        """A copy of this project, in which a command may leave what it builds."""
        if not self.checkout.exists():
            skipped = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "*.egg-info")
            shutil.copytree(ROOT, self.checkout, ignore=skipped)
            _write_programs(self.checkout / ".venv" / "bin")
        return self.checkout

    def _expanded(self, text: str) -> str:
        return re.sub(r"\$(\w+)", lambda found: self.variables.get(found[1], found[0]), text)

    def _run(self, text: str, folder: Path) -> str:
        words = shlex.split(self._expanded(text))
        ours = Path(words[0]).name == "msdeform" and not re.search(r"[|<>;&]", text)
        if ours and words[1] == "serve":
            return self._serve(words[1:], folder)
        if ours:
            code, said = _in_process(words[1:], folder)
        else:
            code, said = self._in_shell(text, folder)
        if code:
            raise Failed(f"{text}\nended with status {code}; it printed\n{said[-3000:]}")
        return said

    def _environment(self, folder: Path) -> dict[str, str]:
        path = os.pathsep.join([str(folder / ".venv" / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**os.environ, **self.variables, "PATH": path, "PYTHONPATH": str(ROOT), "PIP_NO_INPUT": "1"}

    def _in_shell(self, text: str, folder: Path) -> tuple[int, str]:
        shell = shutil.which("bash") or "sh"
        if self.port:
            text = text.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")
        if text.startswith("curl "):
            text = f"curl --silent --show-error --fail{text.removeprefix('curl')}"
        done = subprocess.run(
            [shell, "-c", text],
            cwd=folder,
            env=self._environment(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=LIMIT,
        )
        return done.returncode, done.stdout

    def _serve(self, words: list[str], folder: Path) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-c", PROGRAMS["msdeform"], *words, "--port", str(self.port)]
        log = folder / "server.log"
        with log.open("wb") as told:
            server = subprocess.Popen(
                command, cwd=folder, env=self._environment(folder), stdout=told, stderr=subprocess.STDOUT
            )
        self.servers.append(server)
        end = time.monotonic() + LIMIT
        while not _ready(self.port):
            if server.poll() is not None or time.monotonic() > end:
                raise Failed(f"{shlex.join(words)}\ndid not answer; it printed\n{log.read_text()}")
            time.sleep(0.2)
        return log.read_text()


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _in_process(words: list[str], folder: Path) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(words)
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1
    return code, said.getvalue()


def _write_programs(folder: Path) -> None:
    """The environment's programs, which a page may name by .venv/bin or alone; installed or not, they are this code."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, code in PROGRAMS.items():
        (folder / name).write_text(f"#!{sys.executable}\nimport sys\n{code.replace('; ', chr(10))}\n")
    (folder / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    for program in folder.iterdir():
        program.chmod(0o755)
