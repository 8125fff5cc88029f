"""A plugin of pytest that puts ours in the place of a peer's, and writes down what became of each test."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peer_suites import SUITES, reached

_SUITE = SUITES[os.environ["PEER_SUITE"]]
_outcomes: dict[str, dict[str, Any]] = {}


def pytest_configure() -> None:
    if not _SUITE.full_jacobians:
        full = torch.autograd.gradcheck
        torch.autograd.gradcheck = lambda function, inputs: full(  # type: ignore[assignment]
            function, inputs, fast_mode=inputs[0].shape[-1] > 256
        )
    if os.environ["PEER_WITH_OURS"] == "yes":
        _SUITE.put(Path(os.environ["PEER_CLONE"]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    before = reached.total()
    try:
        return (yield)
    finally:
        _outcomes.setdefault(item.nodeid, {})["reached"] = reached.total() > before


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    found = _outcomes.setdefault(report.nodeid, {})
    if report.outcome == "failed":
        found["outcome"] = "failed"
        crash = getattr(report.longrepr, "reprcrash", None)
        found["why"] = str(crash.message if crash else report.longrepr).splitlines()[0][:200]
    elif found.get("outcome") != "failed" and type(report) is pytest.TestReport:  # a part of a test says nothing of it
        found["outcome"] = report.outcome


def pytest_sessionfinish() -> None:
    Path(os.environ["PEER_RESULTS"]).write_text(json.dumps(_outcomes, indent=1))
