"""What a bench found, as a table and as a page."""

from __future__ import annotations

from pathlib import Path

from piecewise_core.cli.benchruns import Measured

__all__ = ["page", "table"]


def table(found: Measured) -> str:
    """The table, in plain text of at most 80 columns."""
    names = found.runners
    heads = [" x ".join(found.dims) or "size", "calls", *(f"{n} (ms)" for n in names)]
    heads += [f"{n} speed" for n in names[1:]]
    rows = [
        [
            "x".join(map(str, t.sizes)) or "-",
            str(t.calls),
            *(f"{t.seconds[n] * 1e3:.3f}" for n in names),
            *(f"{t.seconds['eager'] / t.seconds[n]:.2f}x" for n in names[1:]),
        ]
        for t in found.times
    ]
    total = found.total
    calls = sum(t.calls for t in found.times)
    rows.append(
        ["all", str(calls), *(f"{total[n] * 1e3:.1f}" for n in names)]
        + [f"{total['eager'] / total[n]:.2f}x" for n in names[1:]]
    )
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = [f"{found.model} on {found.device}: results equal to eager, speed against eager"]
    lines += [
        "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in [heads, *rows]
    ]
    lines += [f"{name} is left out: {why}" for name, why in found.failed.items()]
    lines += list(found.notes)
    return "\n".join(lines)


def page(found: Measured) -> str:
    """One HTML page that fetches nothing."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    slowest = max(s for t in found.times for s in t.seconds.values())
    return environment.get_template("bench.html.j2").render(found=found, slowest=slowest)
