"""What the tests of one suite share, and how those that ran ended."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from piecewise_core.testing.conformance.marks import Spec
from piecewise_core.testing.conformance.subject import Subject, find_subject
from piecewise_core.testing.conformance.xfail import read_xfails

__all__ = ["Run", "Suite"]


class Suite(Protocol):
    """The class whose tests these are."""

    platform: Any
    level: str
    seconds: float

    def xfail_path(self) -> Path | None: ...

    def specs(self) -> Mapping[str, Spec]: ...


class Run:
    """What the tests of one suite share: the subject, outcomes so far, what is made once."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.outcomes: dict[str, str] = {}
        self.kept: dict[str, Any] = {}
        # From before the plugin was imported, which may change it.
        self.environ = dict(os.environ)
        self._subject: Subject | None = None
        self._xfails: Mapping[str, str] | None = None

    @property
    def subject(self) -> Subject:
        """The platform under test. Raises what ``find_subject`` raises."""
        if self._subject is None:
            self._subject = find_subject(self.suite.platform)
        return self._subject

    @property
    def xfails(self) -> Mapping[str, str]:
        """Expected failures with their reasons. Raises ConfigError for a file with mistakes."""
        if self._xfails is None:
            path = self.suite.xfail_path()
            self._xfails = {} if path is None else read_xfails(path, self.suite.specs())
        return self._xfails
