"""``piecewise bisect``: which piece of one call first differs from the model as written."""

from __future__ import annotations

import sys
from typing import Any

import click

from piecewise_core.cli.subject import Cannot, arguments_of, made_by, path_option, refused

__all__ = ["bisect"]


@click.command()
@click.argument("subject", metavar="MODULE:FUNCTION")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@path_option
def bisect(subject: str, as_json: bool, paths: tuple[str, ...]) -> None:
    """Compare every piece of one call with the model as written.

    FUNCTION takes nothing and returns (compiled, args) or (compiled, args, kwargs): what pw.compile
    gave, and the arguments of a call. Gradients are off while it runs and while the call does.

    Prints the first piece that differs, in which stage (split, compiled, captured, padded), and its
    source lines. Exits with 0 if nothing differs, 1 if something does, 2 if the call cannot be
    made.
    """
    import torch

    with torch.no_grad():
        compiled, args, kwargs = _call(subject, paths)
        report = refused(lambda: compiled.bisect(*args, **kwargs))
    click.echo(report.to_json() if as_json else str(report))
    if report.differs:
        sys.exit(1)


def _call(subject: str, paths: tuple[str, ...]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """What the user's function returns, in three parts."""
    made = made_by(subject, paths)
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not hasattr(made[0], "bisect"):
        raise Cannot(
            f"{subject} returned a {type(made).__name__}; it must return (compiled, args) or "
            "(compiled, args, kwargs) with what pw.compile gave"
        )
    compiled, args, *rest = made
    return compiled, *arguments_of(subject, args, rest[0] if rest else {})
