"""``piecewise cache keygen | sign | verify`` and the same of bundles."""

from __future__ import annotations

import functools
import os
import sys
import time
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

__all__ = ["keygen", "sign", "sign_bundle", "verify", "verify_bundle"]

_sign_key = click.option(
    "--sign-key",
    metavar="FILE",
    help="A file of keys, or a key's id, as in Config; else PIECEWISE_SIGN_KEY.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--ed25519", is_flag=True, help="A pair of keys; else one key that all share.")
@click.option("--id", "id_", metavar="ID", help="What to call it; else a name at random.")
@click.option("--days", type=click.IntRange(0), help="How many days it holds; else for ever.")
@click.option("--public", type=click.Path(path_type=Path), help="Write what only verifies there.")
def keygen(
    file: Path, ed25519: bool, id_: str | None, days: int | None, public: Path | None
) -> None:
    """Make a key in FILE, which signs from now on; those that are there go on being trusted.

    With --public, a file without secrets: for those who load what they must not be able to make.
    """
    from piecewise_core.store.keys import Keys, new_key, read_keys

    known = {}
    if file.exists():
        known = dict(or_refuse(lambda: read_keys(str(file.absolute()), os.environ)).known)
    algorithm = "ed25519" if ed25519 else "hmac-sha256"
    name = id_ or f"key-{os.urandom(4).hex()}"
    if name in known:
        raise click.ClickException(f"{file} has a key {name} already; choose another --id")
    known[name] = or_refuse(lambda: new_key(name, algorithm, days, time.time()))
    _write(file, Keys(known, name).text(), 0o600)
    ends = "" if known[name].expires is None else f", until {known[name].expires}"
    click.echo(f"{file}: key {name} ({algorithm}) signs{ends}; {len(known)} trusted")
    if public is not None:
        shown = {id_: key.public() for id_, key in known.items() if key.algorithm == "ed25519"}
        _write(public, Keys(shown, "").text(), 0o644)
        click.echo(f"{public}: {len(shown)} of {len(known)} keys, to verify with")


@click.command()
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--again", is_flag=True, help="Also what a trusted key signed: after a new key.")
@_sign_key
@common
def sign(
    keys: tuple[str, ...], again: bool, sign_key: str | None, cache_dir: str | None, as_json: bool
) -> None:
    """Sign the entries of the store: those with a KEY, or all. You vouch for what they hold.

    What trusted keys signed keeps its signature.
    """
    from piecewise_core.store.entry import Entry
    from piecewise_core.store.files import FileStore

    signer = _required(sign_key)
    if not signer.can_sign:
        raise click.ClickException("the file of keys has none that signs today")
    signed: list[str] = []
    target = file_store(cache_dir, signer)
    plain: Any = None if target is None else or_refuse(lambda: FileStore(target.root.parent))
    every = [] if plain is None else sorted(plain.manifests(), key=lambda m: m.key)
    for manifest in [one(every, key) for key in keys] if keys else every:
        held = target.check(manifest.key) is None
        found = None if held and not again else plain.get(manifest.key)
        if found is not None:
            entry = Entry(found.manifest, found.artifact)
            if or_refuse(functools.partial(target.put, entry, replace=True)):
                signed.append(manifest.key)
    if as_json:
        print_json({"signed": signed, "entries": len(every)})
    else:
        click.echo(f"{len(signed)} of {len(every)} entries signed")


@click.command()
@_sign_key
@url_option
@common
def verify(sign_key: str | None, url: str | None, cache_dir: str | None, as_json: bool) -> None:
    """Check every entry byte by byte; what is damaged goes into quarantine, but not at a URL.

    With --sign-key, or PIECEWISE_TRUST=signed, signatures too. Exits with 1 if any entry is
    damaged, or would be refused.
    """
    from piecewise_core.store.files import FileStore

    signer = environment_signer(sign_key)
    signed = level_at(url, signer) if url else file_store(cache_dir, signer)
    store: Any = level_at(url) if url else None
    if not url and signed is not None:
        store = or_refuse(lambda: FileStore(signed.root.parent))
    damaged: dict[str, str] = {}
    refused: dict[str, str] = {}
    keys = [] if store is None else or_refuse(lambda: list(store.all_keys()))
    for key in keys:
        wrong = or_refuse(functools.partial(store.check, key))
        if wrong is not None and (url or store.path(key).exists()):
            damaged[key] = wrong
            if not url:
                store.quarantine(key, wrong)
        elif signer is not None and signer.required and (unsigned := signed.check(key)):
            refused[key] = unsigned
    if as_json:
        print_json({"checked": len(keys), "damaged": damaged, "refused": refused})
    else:
        for key, wrong in {**damaged, **refused}.items():
            click.echo(f"{key}: {wrong}")
        more = f", {len(refused)} refused for their signature" if signer is not None else ""
        click.echo(f"{len(keys)} entries checked, {len(damaged)} damaged{more}")
    sys.exit(1 if damaged or refused else 0)


@click.command("sign")
@click.argument("file", type=click.Path(path_type=Path))
@_sign_key
def sign_bundle(file: Path, sign_key: str | None) -> None:
    """Sign the bundle FILE, once every byte of it is checked. You vouch for what it holds."""
    from piecewise_core.bundle.container import read_container, write_container

    signer = _required(sign_key)
    if not signer.can_sign:
        raise click.ClickException("the file of keys has none that signs today")
    about, members = or_refuse(lambda: read_container(file))
    or_refuse(lambda: write_container(file, about, members, signer))
    click.echo(f"{file} signed")


@click.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@_sign_key
@_json
def verify_bundle(file: Path, sign_key: str | None, as_json: bool) -> None:
    """Check every byte of the bundle FILE, and its signature. Nothing in it is run.

    Exits with 1 if pw.load(trust="signed") would refuse it.
    """
    from piecewise_core.bundle.content import read_content
    from piecewise_core.errors import StoreError

    why = ""
    signer = _required(sign_key)
    try:
        read_content(file, signer)
    except StoreError as error:
        why = str(error)
    if as_json:
        print_json({"file": str(file), "refused": why})
    else:
        click.echo(why or f"{file}: whole, and signed by a trusted key")
    sys.exit(1 if why else 0)


def _required(sign_key: str | None) -> Any:
    """The signer; without a file of keys, one line that says how to name one."""
    named = sign_key or os.environ.get("PIECEWISE_SIGN_KEY", "").strip()
    if not named:
        raise click.ClickException("give --sign-key FILE, or set PIECEWISE_SIGN_KEY")
    return environment_signer(named)


def _write(path: Path, text: str, mode: int) -> None:
    """The file, whole or not at all; nobody else can read it at any time, unless ``mode`` says."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")

    def write() -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(aside, flags, 0o600), "w", encoding="ascii") as file:
            file.write(text)
        os.chmod(aside, mode)
        os.replace(aside, path)

    or_refuse(write)
