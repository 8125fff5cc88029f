"""Wheel and source archive: the same bytes from two folders, at two times, under two umasks; and what lies in them."""

import io
import json
import os
import tarfile
import time
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.licenses import canonicalize_license_expression

from tests.house.project import FOLDERS, PYPROJECT, ROOT, copy_source
from tests.house.supply import dist, sbom
from tests.house.supply.closure import pinned
from tests.house.test_dependencies import NEWEST, PINS

EPOCH = 1_700_000_000


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> list[list[Path]]:
    """The wheel and the archive, built from two copies of the source that lie and date differently."""
    built = []
    for place, (umask, age) in enumerate([(0o022, 0), (0o077, 5_000_000)]):
        folder = tmp_path_factory.mktemp(f"build{place}")
        before = os.umask(umask)
        try:
            source = copy_source(folder / ("source" if place else "another/place/of/the/source"))
            for file in source.rglob("*"):
                os.utime(file, (time.time() - age, time.time() - age))
            built.append(dist.build(source, folder / "out", EPOCH))
        finally:
            os.umask(before)
    return built


@pytest.mark.slow
def test_two_builds_are_the_same_bytes(twice: list[list[Path]]) -> None:
    for first, second in zip(*twice, strict=True):
        assert first.name == second.name
        assert first.read_bytes() == second.read_bytes(), first.name


def test_an_archive_forgets_who_packed_it(tmp_path: Path) -> None:
    packed = []
    for name, mtime in (("first", 1), ("second", 2_000_000)):
        archive = tmp_path / f"{name}.tar.gz"
        with tarfile.open(archive, "w:gz") as opened:
            for file in sorted(["b.py", "a.py"], reverse=name == "first"):
                member = tarfile.TarInfo(file)
                member.size, member.mtime, member.uid, member.uname, member.mode = 4, mtime, mtime, name, 0o600
                opened.addfile(member, io.BytesIO(b"pass"))
        dist.normalise(archive, EPOCH)
        packed.append(archive.read_bytes())
        with tarfile.open(archive) as opened:
            assert [(one.name, opened.extractfile(one).read()) for one in opened] == [  # type: ignore[union-attr]
                ("a.py", b"pass"),
                ("b.py", b"pass"),
            ]
    assert packed[0] == packed[1]


@pytest.mark.slow
def test_the_archive_holds_what_a_build_needs_and_no_more(twice: list[list[Path]]) -> None:
    wheel, archive = twice[0]
    with tarfile.open(archive) as opened:
        members = opened.getmembers()
    files = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert files >= {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO", "msdeform/cli.py", "kernels/api.py"}
    folders = {name.partition("/")[0] for name in files if "/" in name}
    assert folders == {folder.partition("/")[0] for folder in FOLDERS.values()} | {"msdeform.egg-info"}
    assert {(member.uid, member.uname, member.mtime) for member in members} == {(0, "", EPOCH)}
    # the wheel was made from the archive, so what the archive lacks the wheel lacks too: tests/house/test_install.py
    # compares a wheel with the disk
    with zipfile.ZipFile(wheel) as opened_wheel:
        code = {name for name in opened_wheel.namelist() if ".dist-info/" not in name}
    assert len(code) > 200


@pytest.mark.slow
def test_the_metadata_are_complete(twice: list[list[Path]]) -> None:
    with zipfile.ZipFile(twice[0][0]) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        data = message_from_bytes(wheel.read(name))
        [points] = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert data["License-Expression"] == canonicalize_license_expression(data["License-Expression"]) == "Apache-2.0"
    assert data["License-File"] == "LICENSE"
    assert data["Requires-Python"] == PYPROJECT["project"]["requires-python"]
    assert all(data[name] for name in ("Author", "Keywords", "Summary"))
    assert data["Description-Content-Type"] == "text/markdown"
    assert points.split() == ["[console_scripts]", "msdeform", "=", "msdeform.cli:main"]
    assert set(data.get_all("Provides-Extra", [])) == set(PYPROJECT["project"]["optional-dependencies"])


def test_classifiers_are_those_that_pypi_knows() -> None:
    trove = pytest.importorskip("trove_classifiers")
    classifiers = PYPROJECT["project"]["classifiers"]
    assert set(classifiers) - trove.classifiers == set()
    assert len(classifiers) == len(set(classifiers))
    assert set(classifiers) & set(trove.deprecated_classifiers) == set()


@pytest.fixture(scope="module")
def bill() -> str:
    if PINS is not NEWEST:
        pytest.skip("the bill is that of constraints.txt, and this environment has other versions")
    return sbom.bill("1.2.3", "0" * 64, EPOCH)


def test_the_bill_of_materials_follows_the_schema(bill: str) -> None:
    """CycloneDX's own schema, as its library for Python ships it; the library comes with pip-audit."""
    validation = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion

    validator = validation.JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(bill) is None
    assert validator.validate_str(bill.replace('"library"', '"librairie"')) is not None


def test_the_bill_of_materials_lists_what_is_pinned(bill: str) -> None:
    document = json.loads(bill)
    assert bill == sbom.bill("1.2.3", "0" * 64, EPOCH)
    parts = {part["name"]: part for part in document["components"]}
    assert parts["torch"]["version"] == str(pinned(NEWEST["torch"]))
    assert parts["torch"]["scope"] == "required"
    assert all(part["licenses"][0]["expression"] for part in parts.values())
    assert "pytest" not in parts, "only what users install"
    depends = {one["ref"]: one["dependsOn"] for one in document["dependencies"]}
    assert {"numpy", "torch"} <= set(depends["msdeform"])
    assert "sympy" in depends["torch"]
    # everything that a component depends on is one, and each is reached from msdeform
    reached, queue = set(), ["msdeform"]
    while queue:
        name = queue.pop()
        if name not in reached:
            reached.add(name)
            queue += depends[name]
    assert reached == {"msdeform", *parts}


def test_the_citation_file_has_what_its_format_asks_for() -> None:
    """The Citation File Format 1.2.0, as far as this file uses it."""
    yaml = pytest.importorskip("yaml")
    data = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    required = {"authors", "cff-version", "message", "title"}
    optional = {"abstract", "type", "version", "license", "references", "keywords", "date-released"}
    assert required <= set(data) <= required | optional
    assert (data["cff-version"], data["type"]) == ("1.2.0", "software")
    assert data["license"] == PYPROJECT["project"]["license"]
    assert data["abstract"] == PYPROJECT["project"]["description"]
    assert all({"name"} == set(author) or {"family-names", "given-names"} == set(author) for author in data["authors"])
    for reference in data["references"]:
        assert {"type", "title", "authors"} <= set(reference)
        assert isinstance(reference["year"], int)
