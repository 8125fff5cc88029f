"""What `make dist` does: wheel and source archive of the last commit, byte for byte the same wherever and whenever they
are made, checked, with the bill of materials beside them.

All are made from a copy of the commit, in which files have its time and plain modes: neither what lies in the checkout
nor the machine's clock and umask go into them.
"""

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.house.project import ROOT
from tests.house.supply import sbom


def normalise(archive: Path, epoch: int) -> None:
    """Writes a source archive anew, without the builder's clock, name and umask, which setuptools writes into it."""
    with tarfile.open(archive) as old:
        members = [(member, old.extractfile(member)) for member in sorted(old.getmembers(), key=lambda one: one.name)]
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as new:
            for member, content in members:
                clean = tarfile.TarInfo(member.name)
                clean.type, clean.size, clean.mtime = member.type, member.size, epoch
                clean.mode = 0o755 if member.isdir() else 0o644
                new.addfile(clean, content)
    with archive.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=epoch) as packed:
        packed.write(plain.getvalue())


def build(source: Path, destination: Path, epoch: int) -> list[Path]:
    """The wheel and the source archive of a folder that holds nothing but the source; changes the modes of its files.

    The wheel is made from the archive, so the archive is known to hold what a build needs.
    """
    for path in source.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(destination), str(source)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
    answer = subprocess.run(command, env=environment, umask=0o022, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise RuntimeError(f"the build failed:\n{answer.stdout}{answer.stderr}")
    [archive], [wheel] = destination.glob("*.tar.gz"), destination.glob("*.whl")
    normalise(archive, epoch)
    return [wheel, archive]


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout


def main() -> int:
    """Fills dist/ anew and prints the hash of each file in it; exit status."""
    epoch = int(git("log", "-1", "--format=%ct"))
    destination = ROOT / "dist"
    shutil.rmtree(destination, ignore_errors=True)
    destination.mkdir()
    if git("status", "--porcelain", "--untracked-files=no"):
        print("dist: made of the last commit; changes that are not committed are not in it", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(git("archive", "HEAD"))) as commit:
            commit.extractall(folder, filter="data")
        files = build(Path(folder), destination, epoch)
    status = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)], check=False)
    version = files[0].name.split("-")[1]
    bill = destination / f"msdeform-{version}.cdx.json"
    bill.write_text(sbom.bill(version, sha256(files[0]), epoch), encoding="utf-8")
    for file in [*files, bill]:
        print(f"{sha256(file)}  {file.relative_to(ROOT)}")
    return status.returncode


if __name__ == "__main__":
    sys.exit(main())
