"""What can be shown as a page of its own."""

from __future__ import annotations

import os
from pathlib import Path

from piecewise_core.errors import ReportError
from piecewise_core.frontend.facts import Facts

__all__ = ["Paged"]


class Paged:
    """``to_html`` and what notebooks ask for, of ``_facts()``."""

    def _facts(self) -> Facts:
        raise NotImplementedError

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """One HTML page that needs nothing else; written to ``path`` if given.

        Raises ReportError where ``path`` cannot be written.
        """
        from piecewise_core.frontend.report.page import page  # jinja2, for who wants a page

        made = page(self._facts())
        if path is not None:
            _write(Path(path), made)
        return made

    def _repr_html_(self) -> str:
        """What a notebook shows: the page in a frame of its own."""
        from piecewise_core.frontend.report.page import framed

        return framed(self.to_html())


def _write(path: Path, made: str) -> None:
    try:
        path.write_text(made, encoding="utf-8")
    except OSError as error:
        raise ReportError(
            f"the report cannot be written to {path}: {error.strerror or error}; give the path of "
            "a file in a directory that exists and that you may write to"
        ).having(path=str(path)) from error
