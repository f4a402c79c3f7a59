"""What commands about the compile store have in common."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import click

from piecewise_core.config_cache import store_directory
from piecewise_core.errors import ConfigError, StoreError

__all__ = [
    "common",
    "environment_signer",
    "file_store",
    "level_at",
    "one",
    "or_refuse",
    "print_json",
    "url_option",
]

_Command = Callable[..., Any]


def common(command: _Command) -> _Command:
    """Options that every command has."""
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(
        command
    )
    return click.option(
        "--dir", "cache_dir", metavar="PATH", help="The cache_dir, as in Config(cache_dir=PATH)."
    )(command)


def environment_signer(sign_key: str | None = None) -> Any:
    """Of the variables; ``sign_key``, where given, is that of who requires signatures."""
    from piecewise_core.store.signing import signer_of

    trust = "signed" if sign_key else os.environ.get("PIECEWISE_TRUST", "").strip() or "own"
    if trust not in ("own", "signed"):
        raise click.ClickException(f"PIECEWISE_TRUST={trust!r} is not own or signed")
    named = sign_key or os.environ.get("PIECEWISE_SIGN_KEY", "").strip() or None
    return or_refuse(lambda: signer_of(trust, named))


def file_store(cache_dir: str | None, signer: Any = None) -> Any:
    """The store of files, or None where there is none yet. ``signer``: else the variables'."""
    from piecewise_core.store.files import FileStore

    root = store_directory(cache_dir, os.environ)
    signer = signer or environment_signer()
    return or_refuse(lambda: FileStore(root, signer=signer)) if root.exists() else None


def url_option(command: _Command) -> _Command:
    """``--url``: the second level in place of the store."""
    return click.option(
        "--url", metavar="URL", help="The second level there, as in Config(cache_url=URL)."
    )(command)


def level_at(url: str, signer: Any = None) -> Any:
    """The second level at ``url``, whoever writes there: nothing of it is run here."""
    from piecewise_core.store.fleet.level import Level
    from piecewise_core.store.fleet.urls import open_url

    return Level(or_refuse(lambda: open_url(url, signed=True)), signer)


def or_refuse(work: Callable[[], Any]) -> Any:
    """``work()``; what is wrong is one line, not a traceback."""
    try:
        return work()
    except (ConfigError, StoreError, OSError) as error:
        raise click.ClickException(str(error)) from error


def one(manifests: Sequence[Any], key: str) -> Any:
    """The one entry whose key begins so."""
    found = [m for m in manifests if m.key.startswith(key.lower())]
    if len(found) != 1:
        raise click.ClickException(
            f"{len(found)} entries have keys that begin with {key}; `piecewise cache ls` lists them"
        )
    return found[0]


def print_json(found: dict[str, Any]) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(found, indent=2))
