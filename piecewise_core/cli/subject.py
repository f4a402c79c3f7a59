"""What the user's function gives to a command: imported by name, called, and checked."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from piecewise_core.errors import PiecewiseError

__all__ = ["Cannot", "arguments_of", "config_of", "made_by", "path_option", "refused"]

Command = TypeVar("Command", bound=Callable[..., Any])


class Cannot(click.ClickException):
    """What was asked for cannot be done; the message says what to change."""

    exit_code = 2


def path_option(command: Command) -> Command:
    """The option ``--path`` of commands that import what the user wrote."""
    return click.option(
        "--path",
        "paths",
        multiple=True,
        type=click.Path(exists=True, file_okay=False),
        help="A directory to import MODULE from, before those that Python knows; may be repeated.",
    )(command)


def made_by(subject: str, paths: Sequence[str]) -> Any:
    """What the function ``subject``, as MODULE:FUNCTION, returns. Raises Cannot."""
    sys.path[:0] = [os.path.abspath(path) for path in paths]
    module, _, name = subject.partition(":")
    if not module or not name:
        raise Cannot(f"{subject!r} is not MODULE:FUNCTION, for example app.models:make")
    found = _imported(module)
    for part in name.split("."):
        if not hasattr(found, part):
            raise Cannot(f"{module} has no {name!r}")
        found = getattr(found, part)
    if not callable(found):
        raise Cannot(f"{subject} is a {type(found).__name__}; name a function that takes nothing")
    try:
        return found()
    except Exception as error:
        raise Cannot(f"{subject} raised {type(error).__name__}: {error}") from error


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise Cannot(
            f"no module named {error.name!r}; name the directory it is in with --path"
        ) from error
    except Exception as error:
        raise Cannot(
            f"{module} cannot be imported: {type(error).__name__}: {error}; `python -c 'import "
            f"{module}'` shows where"
        ) from error


def arguments_of(subject: str, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a call as ``subject`` returned them. Raises Cannot."""
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs, dict):
        raise Cannot(
            f"{subject} returned arguments as {type(args).__name__} and {type(kwargs).__name__}; "
            "give a tuple and a dict"
        )
    return tuple(args), kwargs


def config_of(file: str | None) -> Any:
    """The Config in ``file``, by default one without dims. Raises Cannot."""
    from piecewise_core.config import Config

    return Config() if file is None else refused(lambda: Config.from_file(file))


def refused(work: Callable[[], Any]) -> Any:
    """``work()``; an error of ours is one line, not a traceback."""
    try:
        return work()
    except PiecewiseError as error:
        raise Cannot(f"{type(error).__name__}: {error}") from error
