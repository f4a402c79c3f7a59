"""What ``explain()`` gives: facts of a model, as lines, as JSON, and as a page."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from piecewise_core.frontend.facts import Facts
from piecewise_core.frontend.report.lines import text
from piecewise_core.frontend.report.paged import Paged

__all__ = ["Explanation"]


@dataclass(frozen=True)
class Explanation(Facts, Paged):
    """Everything ``explain()`` knows. ``str()`` for people, ``to_json()`` for programs.

    ``verbose``: whether ``str()`` shortens nothing.
    """

    verbose: bool = False

    def to_json(self) -> str:
        """The explanation as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def _facts(self) -> Facts:
        return self

    def __str__(self) -> str:
        return text(self, verbose=self.verbose)
