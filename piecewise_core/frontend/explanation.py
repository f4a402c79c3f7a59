"""What ``explain()`` gives: facts of a model, as lines, as JSON, and as a page."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from piecewise_core.errors import ReportError
from piecewise_core.frontend.facts import Facts
from piecewise_core.frontend.report.lines import text

__all__ = ["Explanation"]


@dataclass(frozen=True)
class Explanation(Facts):
    """Everything ``explain()`` knows. ``str()`` for people, ``to_json()`` for programs.

    ``verbose``: whether ``str()`` shortens nothing.
    """

    verbose: bool = False

    def to_json(self) -> str:
        """The explanation as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """The explanation as one HTML page that needs nothing else; written to ``path`` if given.

        Raises ReportError where ``path`` cannot be written.
        """
        from piecewise_core.frontend.report.page import page  # jinja2, for who wants a page

        made = page(self)
        if path is not None:
            _write(Path(path), made)
        return made

    def _repr_html_(self) -> str:
        """What a notebook shows: the page in a frame of its own."""
        from piecewise_core.frontend.report.page import framed

        return framed(self.to_html())

    def __str__(self) -> str:
        return text(self, verbose=self.verbose)


def _write(path: Path, made: str) -> None:
    try:
        path.write_text(made, encoding="utf-8")
    except OSError as error:
        raise ReportError(
            f"the report cannot be written to {path}: {error.strerror or error}; give the path of "
            "a file in a directory that exists and that you may write to"
        ) from error
