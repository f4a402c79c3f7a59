"""``piecewise cache``: look at the compile store, check it, shrink it, carry it elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from piecewise_core.cli.storeoptions import (
    common,
    environment_signer,
    file_store,
    level_at,
    one,
    or_refuse,
    print_json,
    url_option,
)
from piecewise_core.config_cache import store_directory
from piecewise_core.errors import StoreError

__all__ = ["cache"]


@click.group()
def cache() -> None:
    """Look at the compile store, check it, shrink it, carry it to another machine.

    The store is that of --dir, PIECEWISE_CACHE_DIR, or the user's cache. Keys may be shortened.
    """


@cache.command("ls")
@url_option
@common
def ls(url: str | None, cache_dir: str | None, as_json: bool) -> None:
    """List the entries, the youngest first."""
    from piecewise_core.cli.cache_report import entry_facts, show_entries

    store = level_at(url, environment_signer()) if url else file_store(cache_dir)
    found = [] if store is None else or_refuse(lambda: _youngest_first(store.manifests()))
    where = str(store_directory(cache_dir, os.environ)) if store is None else store.where()
    if as_json:
        print_json({"where": where, "entries": [entry_facts(m) for m in found]})
    else:
        show_entries(found, where)


@cache.command("why")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@common
def why(keys: tuple[str, ...], cache_dir: str | None, as_json: bool) -> None:
    """Say why entries had to be compiled: what differs from the nearest older entry.

    KEY: entries to explain; without, those of the last run that compiled anything.
    """
    from piecewise_core.cli.cache_report import reasons, show_reasons

    store = file_store(cache_dir)
    every = [] if store is None else _youngest_first(store.manifests())
    if keys:
        wanted = [one(every, key) for key in keys]
    else:
        pieces = [m for m in every if "piece.form" in m.factors]
        wanted = [m for m in pieces if m.run == pieces[0].run]
    found = reasons(wanted, every)
    if as_json:
        print_json({"entries": [reason.facts() for reason in found]})
    elif found:
        show_reasons(found)
    else:
        click.echo("the store is empty")


@cache.command("prune")
@click.option("--limit", metavar="SIZE", help="Bytes to keep, as 500M or 20G; else the limit set.")
@click.option("--all", "everything", is_flag=True, help="Remove every entry, and the quarantine.")
@url_option
@common
def prune(
    limit: str | None, everything: bool, url: str | None, cache_dir: str | None, as_json: bool
) -> None:
    """Remove the entries that were used longest ago, and what dead processes left."""
    from piecewise_core.cli.cache_report import size_text
    from piecewise_core.store import pruning
    from piecewise_core.store.opening import LIMIT_VARIABLE, size_limit

    bound = or_refuse(lambda: size_limit({LIMIT_VARIABLE: limit} if limit else os.environ))
    store = None if url else file_store(cache_dir)
    done = pruning.Pruned((), 0, 0)
    if url:
        done = or_refuse(lambda: level_at(url).prune(0 if everything else bound))
    elif store is not None:
        done = pruning.prune(store, 0 if everything else bound)
        if everything:
            pruning.empty_quarantine(store)
    if as_json:
        print_json({"removed": list(done.keys), "freed": done.freed, "left": done.left})
    else:
        freed, left = size_text(done.freed), size_text(done.left)
        click.echo(f"{len(done.keys)} entries removed, {freed} freed, {left} left")


@cache.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@common
def export(file: Path, keys: tuple[str, ...], cache_dir: str | None, as_json: bool) -> None:
    """Write entries to a new FILE: those with a KEY, or all."""
    from piecewise_core.store.exchange import write_archive

    store = file_store(cache_dir)
    every = [] if store is None else sorted(store.manifests(), key=lambda m: m.key)
    wanted = [one(every, key) for key in keys] if keys else every
    if store is None or not wanted:
        raise click.ClickException("the store is empty; there is nothing to export")
    entries = (e for e in (store.get(m.key) for m in wanted) if e is not None)
    count = or_refuse(lambda: write_archive(file, entries))
    if as_json:
        print_json({"file": str(file), "entries": count})
    else:
        click.echo(f"{count} entries written to {file}")


@cache.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@common
def import_(file: Path, cache_dir: str | None, as_json: bool) -> None:
    """Add the entries of FILE, a file that export wrote, once all of them are checked.

    Entries are executed when a model uses them: import only what you trust as you trust code, or
    set PIECEWISE_TRUST=signed and PIECEWISE_SIGN_KEY.
    """
    from piecewise_core.store.opening import size_limit

    added, known = or_refuse(lambda: _add(file, cache_dir, size_limit(os.environ)))
    if as_json:
        print_json({"file": str(file), "added": added, "known": known})
    else:
        click.echo(f"{added} entries added, {known} were there")


def _add(file: Path, cache_dir: str | None, limit: int) -> tuple[int, int]:
    from piecewise_core.store.exchange import Archive
    from piecewise_core.store.files import FileStore

    signer = environment_signer()
    with Archive.open(file, limit, signer) as archive:
        for _ in archive.entries():
            pass
        store = FileStore(store_directory(cache_dir, os.environ), signer=signer)
        if not store.writable:
            raise StoreError(f"{store.where()} cannot be written to")
        added = known = 0
        for entry in archive.entries():
            with store.lock(entry.manifest.key):
                taken = store.put(entry)
            added, known = added + taken, known + (not taken)
    return added, known


def _youngest_first(manifests: Any) -> list[Any]:
    return sorted(manifests, key=lambda m: (-m.made, m.label, m.key))
