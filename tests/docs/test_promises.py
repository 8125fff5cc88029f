"""Each promise of docs/security.md and docs/reliability.md names a test, and that test is there."""

import ast
import re

import pytest

from tests.house.project import ROOT

ROW = re.compile(r"\| .+ \| \[`(\w+)`\]\(\.\./(tests/[\w/]+\.py)\) \| .+ \|")


@pytest.mark.parametrize("page", ["security", "reliability"])
def test_every_promise_has_its_test(page: str) -> None:
    lines = (ROOT / "docs" / f"{page}.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| promise |")]
    assert len(rows) >= 8
    for row in rows:
        found = ROW.fullmatch(row)
        assert found, f"expected `| promise | [`test`](../tests/file.py) | what was tried |`, got {row}"
        test, file = found.groups()
        tree = ast.parse((ROOT / file).read_text())
        assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, row
