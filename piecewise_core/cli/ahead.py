"""``piecewise compile``: from a function that makes a model to a bundle, ahead of any traffic."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from piecewise_core.cli.subject import (
    Cannot,
    arguments_of,
    config_of,
    made_by,
    path_option,
    refused,
)

__all__ = ["compile_"]


@click.command("compile")
@click.argument("subject", metavar="MODULE:FUNCTION")
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="Fields of a Config, as TOML or JSON by the file's suffix.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The bundle to write.",
)
@click.option("--platform", metavar="NAME", help="The platform; by default that of the model.")
@path_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compile_(
    subject: str,
    config_file: str | None,
    output: Path,
    platform: str | None,
    paths: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compile a model for all its sizes, and write a bundle that pw.load() binds to it.

    FUNCTION takes nothing and returns (model, args) or (model, args, kwargs): a module or function,
    and the arguments of a call of any size. A model that pw.compile() gave keeps its own Config.
    Gradients are off. The bundle has everything but the weights.

    Says on standard error how far it is, every few seconds. Exits with 2 where it cannot be done.
    """
    import torch

    if not output.absolute().parent.is_dir():  # said before minutes of work
        raise Cannot(f"{output} cannot be written: there is no directory {output.parent}")
    with torch.inference_mode():
        compiled, args, kwargs = _compiled(made_by(subject, paths), subject, config_file, platform)
        report = refused(lambda: compiled.warmup(*args, **kwargs))
        saved = refused(lambda: compiled.save(output))
    if as_json:
        facts = {"warmup": asdict(report), "bundle": asdict(saved) | {"path": str(output)}}
        click.echo(json.dumps(facts, indent=2))
    else:
        click.echo(f"{report}\n{saved}")


def _compiled(
    made: Any, subject: str, config_file: str | None, platform: str | None
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The compiled model and the arguments of one call."""
    import piecewise_core as pw
    from piecewise_core.compiled import Controls

    parts = made if isinstance(made, tuple) else (made,)
    if len(parts) not in (1, 2, 3) or not callable(parts[0]):
        raise Cannot(
            f"{subject} returned {_shown(made)}; it must return (model, args) or (model, args, "
            "kwargs), with a model that can be called"
        )
    model, args, kwargs = parts + ((), {})[len(parts) - 1 :]
    args, kwargs = arguments_of(subject, args, kwargs)
    if isinstance(model, Controls):
        if config_file is not None or platform is not None:
            raise Cannot(
                f"{subject} returned a model that is compiled already, with a Config of its own; "
                "return the original, or leave --config and --platform out"
            )
        return model, args, kwargs
    config = config_of(config_file)
    return refused(lambda: pw.compile(model, config, platform)), args, kwargs


def _shown(made: Any) -> str:
    if isinstance(made, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in made) or 'nothing'}"
    return f"a {type(made).__name__}"
