"""Histograms in files: our own recordings, JSON and CSV of other tools."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from piecewise_core.errors import PlanError
from piecewise_core.planner.histogram import Histogram, count_of, sizes_of

__all__ = ["read_histogram"]

_COUNTS = ("count", "counts", "calls", "requests", "hits", "n", "number", "frequency", "weight")
"""Names of the column that says how many calls a line stands for."""

_LINES = 1_000_000
"""Lines that are counted at once: equal ones are read only once."""

_NUMBER = re.compile(r"\s*[+-]?\d{1,18}(\.0*)?\s*\Z")


def read_histogram(path: str | os.PathLike[str], columns: Sequence[str] = ()) -> Histogram:
    """The histogram in a file, JSON if it begins like it, else CSV.

    ``columns``: those that hold sizes, by name; others are left out. Raises PlanError naming the
    file and the line.
    """
    file = Path(path)
    try:
        with file.open(encoding="utf-8-sig", newline=None) as stream:
            start = stream.read(256).lstrip()[:1]
            stream.seek(0)
            found = _json(stream, columns) if start in ("{", "[") else _csv(stream, columns)
    except OSError as error:
        why = f"{file} cannot be read: {error.strerror or error}"
    except UnicodeDecodeError:
        why = f"{file} is no text in UTF-8; give JSON or CSV"
    except PlanError as error:
        why = f"{file}: {error}"
    else:
        if found.calls:
            return found
        why = f"{file} has no calls: give one line per size, as in 128,20"
    raise PlanError(why).having(path=str(file))


# JSON ---------------------------------------------------------------------------------


def _json(stream: TextIO, columns: Sequence[str]) -> Histogram:
    try:
        data = json.load(stream)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"no JSON: {error}") from None
    if isinstance(data, dict) and "piecewise_histogram" in data:
        return _ours(data)
    if isinstance(data, dict):
        calls = {_key(key): count for key, count in data.items()}
        return Histogram.of(calls, columns)
    if data and all(isinstance(row, dict) for row in data):
        names = list(data[0])
        rows = ([row.get(name) for name in names] for row in data)
        return _table(names, Counter(map(tuple, rows)).items(), columns)
    if data and all(isinstance(row, list) and len(row) > 1 for row in data):
        return _unnamed((tuple(row), 1) for row in data)
    return Histogram.of(data, columns)


def _ours(data: dict[str, Any]) -> Histogram:
    if data["piecewise_histogram"] != 1:
        raise PlanError(
            f"a histogram of version {data['piecewise_histogram']!r}, and this piecewise reads 1; "
            "install the piecewise-core that wrote it"
        )
    try:
        dims, calls = tuple(map(str, data["dims"])), {}
        for sizes, count in data["calls"]:
            calls[sizes_of(sizes, len(dims))] = count_of(count)
        return Histogram(dims, calls, data.get("graph_bytes"), data.get("row_bytes"))
    except (KeyError, TypeError, ValueError) as error:
        raise error if isinstance(error, PlanError) else PlanError(f"damaged: {error!r}") from None


def _key(text: str) -> tuple[Any, ...]:
    """``"8"``, ``"4,128"`` or ``"4x128"``."""
    return tuple(_cell(part, f"key {text!r}") for part in re.split(r"[,x]", text.strip("()[] ")))


# CSV ----------------------------------------------------------------------------------


def _csv(stream: TextIO, columns: Sequence[str]) -> Histogram:
    first = next((line for line in stream if _says(line)), "")
    cells = _split(first)
    numbers = sum(map(bool, map(_NUMBER.match, cells)))
    named = numbers < (len(cells) if columns else min(len(cells), 1))  # one among others is a slip
    if not named:
        if columns:
            raise PlanError(f"its columns have no names, as {', '.join(columns)}; leave those out")
        stream.seek(0)
    rows = _rows(stream, len(cells), bool(columns))
    return _table(cells, rows, columns) if named else _unnamed(rows)


def _rows(stream: TextIO, width: int, some: bool) -> Iterator[tuple[tuple[Any, ...], int]]:
    """Each distinct row and how often it stands there. ``some``: whether cells may be text."""
    while lines := Counter(islice(stream, _LINES)):
        for line, count in lines.items():
            if not _says(line):
                continue
            cells = _split(line)
            if len(cells) != width:
                raise PlanError(f"line {_short(line)} has {len(cells)} columns, not {width}")
            where = f"line {_short(line)}"
            yield tuple(cells if some else [_cell(cell, where) for cell in cells]), count


def _says(line: str) -> bool:
    text = line.strip()
    return bool(text) and not text.startswith("#")


def _split(line: str) -> list[str]:
    text = line.strip()
    mark = next((each for each in (",", ";", "\t") if each in text), None)
    return [cell.strip().strip("\"'") for cell in text.split(mark)]


# Tables -------------------------------------------------------------------------------


def _unnamed(rows: Iterable[tuple[tuple[Any, ...], int]]) -> Histogram:
    """Sizes, and behind them how many calls had them; of one column each line is a call."""
    calls: dict[tuple[Any, ...], int] = {}
    for row, times in rows:
        sizes, count = (row, 1) if len(row) == 1 else (row[:-1], count_of(row[-1]))
        calls[sizes] = calls.get(sizes, 0) + count * times
    return Histogram.of(calls)


def _table(
    names: Sequence[str], rows: Iterable[tuple[tuple[Any, ...], int]], columns: Sequence[str]
) -> Histogram:
    """Named columns: sizes, and how many calls, or each line is one."""
    for name in columns:
        if name not in names:
            raise PlanError(f"no column {name!r}; there are {', '.join(names)}")
    counted = next((p for p, name in enumerate(names) if name.strip().lower() in _COUNTS), None)
    chosen = columns or [name for place, name in enumerate(names) if place != counted]
    places = [list(names).index(name) for name in chosen]
    if not places:
        raise PlanError(f"no column of sizes among {', '.join(names)}; name columns by their dims")
    calls: dict[tuple[int, ...], int] = {}
    for row, times in rows:
        sizes = tuple(_whole(row[place], names[place]) for place in places)
        count = 1 if counted is None else _whole(row[counted], names[counted])
        calls[sizes] = calls.get(sizes, 0) + count * times
    return Histogram(tuple(chosen), calls)


def _whole(given: Any, column: str) -> int:
    number = _cell(given, f"column {column!r}") if isinstance(given, str) else given
    try:
        return count_of(number)
    except PlanError as error:
        raise PlanError(f"column {column!r}: {error}") from None


def _cell(text: str, where: str) -> int:
    """A whole number; ``12.0`` is one. Raises PlanError."""
    if not _NUMBER.match(text):
        raise PlanError(
            f"{where}: {_short(text)} is no whole number; give sizes and counts, or the columns "
            "that hold sizes (--column NAME)"
        )
    number = int(text.split(".")[0])
    if number < 0:
        raise PlanError(f"{where}: {number} is negative; sizes and counts are 0 or more")
    return number


def _short(text: str) -> str:
    shown = repr(text.strip())
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
