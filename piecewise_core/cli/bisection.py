"""``piecewise bisect``: which piece of one call first differs from the model as written."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from piecewise_core.errors import PiecewiseError

__all__ = ["bisect"]


@click.command()
@click.argument("subject", metavar="MODULE:FUNCTION")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--path",
    "paths",
    multiple=True,
    type=click.Path(exists=True, file_okay=False),
    help="A directory to import MODULE from, before those that Python knows; may be repeated.",
)
def bisect(subject: str, as_json: bool, paths: tuple[str, ...]) -> None:
    """Compare every piece of one call with the model as written.

    FUNCTION takes nothing and returns (compiled, args) or (compiled, args, kwargs): what pw.compile
    gave, and the arguments of a call. Gradients are off while it runs and while the call does.

    Prints the first piece that differs, in which stage (split, compiled, captured, padded), and its
    source lines. Exits with 0 if nothing differs, 1 if something does, 2 if the call cannot be
    made.
    """
    import torch

    sys.path[:0] = [os.path.abspath(path) for path in paths]
    with torch.no_grad():
        compiled, args, kwargs = _call(subject)
        try:
            report = compiled.bisect(*args, **kwargs)
        except PiecewiseError as error:
            raise _Cannot(f"{type(error).__name__}: {error}") from error
    click.echo(report.to_json() if as_json else str(report))
    if report.differs:
        sys.exit(1)


def _call(subject: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """What the user's function returns, in three parts."""
    module, _, name = subject.partition(":")
    if not module or not name:
        raise _Cannot(f"{subject!r} is not MODULE:FUNCTION, for example app.checks:call")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _Cannot(
            f"no module named {error.name!r}; name the directory it is in with --path"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise _Cannot(f"{module} has no {name!r}")
        found = getattr(found, part)
    made = found()
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not hasattr(made[0], "bisect"):
        raise _Cannot(
            f"{subject} returned a {type(made).__name__}; it must return (compiled, args) or "
            "(compiled, args, kwargs) with what pw.compile gave"
        )
    compiled, args, *rest = made
    kwargs = rest[0] if rest else {}
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs, dict):
        raise _Cannot(
            f"{subject} returned arguments as {type(args).__name__} and {type(kwargs).__name__}; "
            "give a tuple and a dict"
        )
    return compiled, tuple(args), kwargs


class _Cannot(click.ClickException):
    exit_code = 2
