"""The file of expected failures: one test a line, with the reason behind a ``#``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

from piecewise_core.errors import ConfigError

__all__ = ["read_xfails"]


def read_xfails(path: Path, known: Iterable[str]) -> Mapping[str, str]:
    """Test name -> reason.

    ``known``: the tests there are. Empty lines and lines that begin with ``#`` are for people.
    Raises ConfigError naming file and line: for a file that cannot be read, an unknown test with
    the nearest name, a test named twice, a missing reason.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the xfail file {path}: {error}") from error
    names, found = list(known), dict[str, str]()
    for number, line in enumerate(text.splitlines(), 1):
        test, _, reason = (part.strip() for part in line.partition("#"))
        if test:
            _check(f"{path}:{number}", test, reason, names, found)
            found[test] = reason
    return found


def _check(where: str, test: str, reason: str, names: list[str], found: Mapping[str, str]) -> None:
    if test not in names:
        near = difflib.get_close_matches(test, names, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{where}: the kit has no test {test!r}{hint}")
    if test in found:
        raise ConfigError(f"{where}: {test} is listed twice; leave one line")
    if not reason:
        raise ConfigError(f"{where}: {test} has no reason; write it behind a #")
