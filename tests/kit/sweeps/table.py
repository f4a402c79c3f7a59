"""A sweep's results as a table, and as the one line that a script reads."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

__all__ = ["summary", "table"]

Row = dict[str, Any]
KINDS = ("equal", "refused", "refused by torch too", "wrong", "bare", "hung", "skipped")


def table(rows: Sequence[Row]) -> str:
    """Counts per pass, then each wrong, bare or hung case, and what only we refuse."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row["pass"] not in ("done", "sizes"):
            counts[row["pass"]][row["kind"]] += 1
    head = f"{'pass':<12}" + "".join(f"{k:>22}" if " " in k else f"{k:>9}" for k in KINDS)
    lines = [head]
    for title, found in counts.items():
        cells = "".join(f"{found[k]:>22}" if " " in k else f"{found[k]:>9}" for k in KINDS)
        lines.append(f"{title:<12}{cells}")
    for row in rows:
        if row.get("kind") in ("wrong", "bare", "hung"):
            lines.append(
                f"{row['kind']}: {row['op']} [{row['pass']}, case {row.get('case')}] {row['why']}"
            )
    lines += [f"refused: {op}: {why}" for op, why in sorted(_refused(rows).items())]
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """How many operators and programs were tried, and how many came to what."""
    kinds = Counter(r["kind"] for r in rows if r["pass"] not in ("done", "sizes"))
    return {
        "operators": len({r["op"] for r in rows if not r["op"].startswith("family:")}),
        "families": len({r["op"] for r in rows if r["op"].startswith("family:")}),
        "programs": sum(kinds.values()),
        "equal": kinds["equal"],
        "wrong": kinds["wrong"],
        "bare": kinds["bare"],
        "hung": kinds["hung"],
        "refused_operators": len(_refused(rows)),
        "operators_of_fixed_size": len({r["op"] for r in rows if r["pass"] == "sizes"}),
    }


def _refused(rows: Sequence[Row]) -> dict[str, str]:
    """Operators that torch.compile serves whole and we refuse at every size, and why."""
    found: dict[str, str] = {}
    for row in rows:
        if row["pass"] == "plain" and row["kind"] == "refused":
            found.setdefault(row["op"], row["why"])
    return found
