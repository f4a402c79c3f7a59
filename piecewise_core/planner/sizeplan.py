"""What a planner found: sizes, what they pad, and what other numbers of them would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from piecewise_core.errors import PlanError
from piecewise_core.planner.boxes import padded_rows
from piecewise_core.planner.histogram import Histogram, sizes_of
from piecewise_core.ranges import Sizes

__all__ = ["SizePlan", "WhatIf"]

Size = int | Sizes


@dataclass(frozen=True)
class WhatIf:
    """What ``graphs`` capture sizes would pad, as a share of the rows, and the bytes they take."""

    graphs: int
    padding: float
    bytes: int | None = None


@dataclass(frozen=True)
class SizePlan:
    """Sizes for ``Config``, chosen for the calls of a histogram. ``str()`` is a table.

    ``sizes``: to capture; ints with one dim, else tuples. ``compile_sizes``: worth code of their
    own. ``endpoints``: the last sizes of ranges, by dim with several. ``expected_padding``: rows
    that padding adds, as a share of the rows of the calls. ``bytes``: of device memory that the
    graphs take; None where that is not known. ``what_if``: other numbers of sizes. ``notes``: what
    was left out, and what could not be kept.
    """

    dims: tuple[str, ...]
    sizes: tuple[Size, ...]
    compile_sizes: tuple[Size, ...]
    endpoints: tuple[int, ...] | Mapping[str, tuple[int, ...]]
    expected_padding: float
    calls: int
    rows: int
    bytes: int | None = None
    what_if: tuple[WhatIf, ...] = ()
    notes: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """The fields of ``Config``: ``pw.Config(dynamic=..., **plan.settings())``."""
        return {
            "capture_sizes": self.sizes,
            "capture_max": False,
            "padding": "capture_sizes",
            "compile_sizes": self.compile_sizes,
            "compile_ranges_endpoints": self.endpoints,
        }

    def padding_of(self, histogram: Histogram) -> float:
        """What these sizes pad of other calls, as a share of their rows.

        Calls that are larger than all sizes run without graphs, unpadded.
        """
        if len(histogram.dims) != len(self.dims):
            raise PlanError(
                f"the plan is for dims {', '.join(self.dims)}, and the calls have "
                f"{', '.join(histogram.dims) or 'none'}"
            )
        boxes = [size if isinstance(size, tuple) else (size,) for size in self.sizes]
        return padded_rows(histogram.calls, boxes) / max(histogram.rows, 1)

    def with_sizes(self, sizes: str) -> SizePlan:
        """The same with other sizes, as ``1,2,4`` or ``4x128,8x128``. Raises PlanError."""
        try:
            given = [tuple(map(int, each.split("x"))) for each in sizes.split(",")]
        except ValueError:
            raise PlanError(f"{sizes[:40]!r} are no sizes; write 1,2,4 or 4x128,8x128") from None
        for each in given:
            sizes_of(each, len(self.dims))
        return replace(self, sizes=tuple(given))

    def to_json(self) -> str:
        """The plan as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        takes = "" if self.bytes is None else f", {_bytes(self.bytes)}"
        lines = [
            f"{len(self.sizes)} capture sizes for {self.calls} calls of {', '.join(self.dims)}: "
            f"{self.expected_padding:.2%} padded rows{takes}",
            *_listed("capture_sizes", [_size(size) for size in self.sizes]),
            *_listed("compile_sizes", [_size(size) for size in self.compile_sizes]),
        ]
        if isinstance(self.endpoints, Mapping):
            for dim, ends in self.endpoints.items():
                lines += _listed(f"compile_ranges_endpoints of {dim}", list(map(str, ends)))
        else:
            lines += _listed("compile_ranges_endpoints", list(map(str, self.endpoints)))
        lines += [f"note: {note}" for note in self.notes]
        if self.what_if:
            memory = any(row.bytes is not None for row in self.what_if)
            lines.append(f"{'graphs':>8}  {'padded rows':>11}{'  memory' if memory else ''}")
        for row in self.what_if:
            takes = "" if row.bytes is None else f"  {_bytes(row.bytes)}"
            mark = "  <- this plan" if row.graphs == len(self.sizes) else ""
            lines.append(f"{row.graphs:>8}  {row.padding:>11.2%}{takes}{mark}")
        return "\n".join(lines)


def _size(size: Size) -> str:
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)


def _listed(name: str, items: list[str]) -> list[str]:
    """``items`` in lines of at most 80 columns."""
    lines, line = [], f"{name}: {'' if items else 'none'}"
    for place, item in enumerate(items):
        text = f"{item}{', ' if place + 1 < len(items) else ''}"
        if len(line) + len(text) > 80:
            lines.append(line.rstrip())
            line = "  "
        line += text
    return [*lines, line.rstrip()]


def _bytes(number: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"
