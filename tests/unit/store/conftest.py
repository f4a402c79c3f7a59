"""A store in a temporary directory, and entries to put there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from piecewise_core.ranges import Box, Range
from piecewise_core.store.entry import Entry, make_entry, make_ticket
from piecewise_core.store.files import FileStore

BOX = Box((Range(1, 64), Range(2, 2)))


def entry_of(number: int = 0, artifact: bytes = b"code " * 20, **facts: Any) -> Entry:
    """Entry ``number``; equal numbers have equal keys."""
    known = {"serves": BOX, "adaptor": "acme", "seconds": 1.5, "made": 1_700_000_000, "run": "r"}
    factors = facts.pop("factors", {"piece.form": str(number), "compiler": "acme"})
    ticket = make_ticket(factors, BOX, facts.pop("label", f"region 0 piece {number}"))
    return make_entry(ticket, artifact, **(known | facts))


@pytest.fixture
def make() -> Callable[..., Entry]:
    return entry_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> FileStore:
    return FileStore(root, timeout=30)


@pytest.fixture
def only_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
