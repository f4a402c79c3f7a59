"""``piecewise doctor``: which platforms there are, which is used, and whether each computes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

__all__ = ["doctor"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "--compile",
    "compiling",
    is_flag=True,
    help="Also compile through each platform's own compiler (may take a minute when cold).",
)
@click.option(
    "--platform",
    "request",
    metavar="NAME",
    help="Select this platform, as pw.compile(..., platform=NAME) would.",
)
def doctor(as_json: bool, compiling: bool, request: str | None) -> None:
    """Show every plugin and its state, and compute something on each available platform.

    States: active (would be used), found (could be used), skipped (does not apply here), failed
    (broken). PIECEWISE_PLATFORM is obeyed. Exits with 0 if the active platform computes, else 1.
    """
    from piecewise_core.cli.diagnosis import diagnose

    with _no_log_on_stderr():
        diagnosis = diagnose(request, compiling=compiling)
    if as_json:
        click.echo(diagnosis.to_json())
    else:
        from piecewise_core.cli.render import render

        render(diagnosis)
    sys.exit(0 if diagnosis.healthy else 1)


@contextmanager
def _no_log_on_stderr() -> Iterator[None]:
    """Keep the warnings about broken plugins from being printed twice: the tables have them."""
    logger, handler = logging.getLogger("piecewise_core"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
