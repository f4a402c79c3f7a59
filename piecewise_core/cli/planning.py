"""``piecewise plan``: sizes to capture and compile for the calls in a file."""

from __future__ import annotations

import re
from pathlib import Path

import click

from piecewise_core.errors import PlanError

__all__ = ["plan"]

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def _bytes(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A number of bytes, or with a unit: 512MiB, 2G."""
    if value is None:
        return None
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?\s*", value.lower())
    if found is None:
        raise click.BadParameter(f"{value!r} is no number of bytes; write 512MiB, 2G or 1000000")
    return int(float(found[1]) * _UNITS[found[2]])


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--padding", default=0.02, show_default=True, help="Padded rows allowed, a share.")
@click.option("--graphs", type=int, help="Capture sizes allowed.")
@click.option(
    "--memory", metavar="BYTES", callback=_bytes, help="Device memory allowed for graphs, as 2GiB."
)
@click.option(
    "--graph-bytes", metavar="BYTES", callback=_bytes, help="What one captured size takes."
)
@click.option("--row-bytes", type=float, help="What a row of the largest size takes.")
@click.option("--max-rows", type=int, help="Calls of more rows run without graphs, unpadded.")
@click.option("--column", multiple=True, help="A column of FILE that holds sizes; repeat for dims.")
@click.option("--sizes", help="Sizes to compare with, those in use now: 1,2,4,8 or 4x128,8x128.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(
    file: Path,
    padding: float,
    graphs: int | None,
    memory: int | None,
    graph_bytes: int | None,
    row_bytes: float | None,
    max_rows: int | None,
    column: tuple[str, ...],
    sizes: str | None,
    *,
    as_json: bool,
) -> None:
    """Say which sizes to capture and compile for the calls in FILE.

    FILE is what compiled.histogram().save() wrote, or JSON or CSV of another tool: a line for each
    call, or for each size with its number of calls behind it. The fewest sizes that pad no more
    than --padding are chosen; where --graphs and --memory allow less, those that pad least. Exits
    with 1 where FILE is no histogram, or not one size fits.
    """
    from piecewise_core.planner.planning import plan as planned
    from piecewise_core.planner.reading import read_histogram

    try:
        histogram = read_histogram(file, column)
        found = planned(
            histogram,
            memory_bytes=memory,
            max_graphs=graphs,
            max_padding=padding,
            graph_bytes=graph_bytes,
            row_bytes=row_bytes,
            max_rows=max_rows,
        )
        used = None if sizes is None else found.with_sizes(sizes).padding_of(histogram)
    except PlanError as error:
        raise click.ClickException(str(error)) from error
    click.echo(found.to_json() if as_json else str(found))
    if used is not None:
        click.echo(f"the sizes in use pad {used:.2%}, these {found.expected_padding:.2%}", err=True)
