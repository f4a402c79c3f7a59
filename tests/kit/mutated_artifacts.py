"""Mutates signed entries and bundles, and counts what gets past the signatures: nothing may.

    python mutated_artifacts.py 1000000 --seed 0

Flipped bytes, truncations, other algorithms and keys in the header, signatures of other entries,
kinds and versions, entries under other names, and files that are replaced while they are read.
Progress on standard error; one JSON line last. Exits with 1 if anything passed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hmac
import json
import logging
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from hashlib import sha256
from pathlib import Path

from piecewise_core.bundle.container import read_container, write_container
from piecewise_core.errors import SignatureRefused, StoreError
from piecewise_core.ranges import Box, Range
from piecewise_core.store.admission import admit
from piecewise_core.store.entry import SCHEMA, make_entry, make_ticket
from piecewise_core.store.files import ARTIFACT, MANIFEST, SIGNATURE, FileStore
from piecewise_core.store.keys import Key, Keys, new_key
from piecewise_core.store.manifest import check_artifact, render
from piecewise_core.store.signing import Signer

BOX = Box((Range(1, 64),))
LATE = date(2020, 1, 1)


@dataclass(frozen=True)
class Sealed:
    """What lies in a store under ``key``."""

    key: str
    manifest: bytes
    artifact: bytes
    signature: bytes


class Subjects:
    """Signed entries by several keys, and who attacks them."""

    def __init__(self, chaos: random.Random, edwards: bool) -> None:
        self.chaos = chaos
        kinds = ["hmac-sha256", "ed25519"] if edwards else ["hmac-sha256"]
        made = [new_key(f"{kind}-{n}", kind, None, 0) for kind in kinds for n in (1, 2)]
        old = replace(new_key("old", "hmac-sha256", None, 0), expires=LATE)
        self.keys = {key.id: key for key in (*made, old)}
        self.signer = Signer(Keys(self.keys, made[0].id))
        self.good = [self._entry(n, key) for n, key in enumerate(made * 4)]
        self.known = set(self.good)
        self.old = self._entry(99, old, long_ago=True)
        self.other = Signer(Keys({k: self._forged(v) for k, v in self.keys.items()}, made[0].id))

    def _entry(self, number: int, key: Key, long_ago: bool = False) -> Sealed:
        factors = {f"factor.{n}": f"value {n}" for n in range(20)}
        ticket = make_ticket({**factors, "piece.form": str(number)}, BOX, f"piece {number}")
        code = random.Random(number).randbytes(300)
        entry = make_entry(ticket, code, serves=BOX, adaptor="acme", seconds=1.0)
        text = render(entry.manifest)
        then = (lambda: 0.0) if long_ago else time.time
        signature = Signer(Keys(self.keys, key.id), now=then).sign(
            "entry", ticket.key, SCHEMA, text
        )
        return Sealed(ticket.key, text, code, signature)

    def _forged(self, key: Key) -> Key:
        """Another key that calls itself the same."""
        return new_key(key.id, key.algorithm, None, 0)

    def attack(self) -> tuple[str, Sealed]:
        """One mutation, by name."""
        name = self.chaos.choice(ATTACKS)
        return name, getattr(self, name)(self.chaos.choice(self.good))

    # Each takes what is good and gives what must not pass.

    def flipped(self, one: Sealed) -> Sealed:
        part = self.chaos.choice(("manifest", "artifact", "signature"))
        data = bytearray(getattr(one, part))
        data[self.chaos.randrange(len(data))] ^= self.chaos.randrange(1, 256)
        return replace(one, **{part: bytes(data)})

    def cut(self, one: Sealed) -> Sealed:
        part = self.chaos.choice(("manifest", "artifact", "signature"))
        data = getattr(one, part)
        return replace(one, **{part: data[: self.chaos.randrange(len(data))]})

    def longer(self, one: Sealed) -> Sealed:
        part = self.chaos.choice(("manifest", "artifact", "signature"))
        more = self.chaos.randbytes(self.chaos.randrange(1, 9))
        data = getattr(one, part)
        return replace(one, **{part: self.chaos.choice((data + more, more + data))})

    def another_algorithm(self, one: Sealed) -> Sealed:
        words = one.signature.split(b" ")
        words[2] = self.chaos.choice(
            [w for w in (b"hmac-sha256", b"ed25519", b"none", b"md5") if w != words[2]]
        )
        if self.chaos.random() < 0.5:  # made with what everybody may know of a pair of keys
            public = self.keys[words[3].decode()].parts.get("public", bytes(32))
            words[4] = hmac.digest(public, one.manifest, "sha256").hex().encode() + b"\n"
        return replace(one, signature=b" ".join(words))

    def another_key(self, one: Sealed) -> Sealed:
        words = one.signature.split(b" ")
        ids = [id_.encode() for id_ in self.keys if id_.encode() != words[3]]
        words[3] = self.chaos.choice([*ids, b"unknown", b"", b"../keys"])
        return replace(one, signature=b" ".join(words))

    def of_another_entry(self, one: Sealed) -> Sealed:
        other = self.chaos.choice([g for g in self.good if g.key != one.key])
        return replace(one, signature=other.signature)

    def under_another_name(self, one: Sealed) -> Sealed:
        return replace(one, key=self.chaos.choice([g.key for g in self.good if g.key != one.key]))

    def of_another_kind(self, one: Sealed) -> Sealed:
        kind, version = self.chaos.choice([("bundle", SCHEMA), ("entry", SCHEMA + 1), ("", SCHEMA)])
        name = self.chaos.choice((one.key, "", f"{one.key}\n", "bundle"))
        return replace(one, signature=self.signer.sign(kind, name, version, one.manifest))

    def by_a_stranger(self, one: Sealed) -> Sealed:
        text = one.manifest.replace(b"acme", b"evil")
        return replace(
            one, manifest=text, signature=self.other.sign("entry", one.key, SCHEMA, text)
        )

    def expired(self, one: Sealed) -> Sealed:
        return self.old

    def unsigned(self, one: Sealed) -> Sealed:
        return replace(one, signature=b"")


ATTACKS = (
    "flipped", "cut", "longer", "another_algorithm", "another_key", "of_another_entry",
    "under_another_name", "of_another_kind", "by_a_stranger", "expired", "unsigned",
)  # fmt: skip


def passed(subjects: Subjects, one: Sealed) -> bool:
    """Whether anything of it was read that no key signed as it stands."""
    whole = {(g.key, g.manifest, g.signature): g.artifact for g in subjects.good}
    try:
        manifest = admit(subjects.signer, one.key, one.manifest, one.signature)
        # What is read may only be what was signed; then the artifact must not pass.
        if (one.key, one.manifest, one.signature) not in whole:
            return True
        check_artifact(manifest, one.artifact)
    except SignatureRefused:
        return False
    except StoreError:
        return (one.key, one.manifest, one.signature) not in whole
    return one not in subjects.known


def in_memory(subjects: Subjects, count: int, tell: Callable[[int], object]) -> dict[str, int]:
    """How many of each attack passed; ``count`` are made."""
    found: collections.Counter[str] = collections.Counter()
    for done in range(count):
        name, one = subjects.attack()
        found[name] += passed(subjects, one)
        if done % 10_000 == 0:
            tell(done)
    return {name: found[name] for name in ATTACKS}


def put(store: FileStore, one: Sealed) -> None:
    """Lay the files of ``one`` where the store looks for them."""
    path = store.path(one.key)
    path.mkdir(parents=True, mode=0o700, exist_ok=True)
    for name, data in (
        (MANIFEST, one.manifest), (ARTIFACT, one.artifact), (SIGNATURE, one.signature),
    ):  # fmt: skip
        (path / name).write_bytes(data)


def in_files(subjects: Subjects, count: int, root: Path) -> int:
    """How many mutated entries a store handed out."""
    store, wrong = FileStore(root, signer=subjects.signer), 0
    for _ in range(count):
        _, one = subjects.attack()
        put(store, one)
        found = store.get(one.key)
        wrong += found is not None and one not in subjects.known
        store.discard(one.key)
    return wrong


def replaced_meanwhile(subjects: Subjects, count: int, root: Path) -> tuple[int, int]:
    """Look-ups that gave what nobody signed, and those that gave what was, while files change."""
    store, one = FileStore(root, signer=subjects.signer), subjects.good[0]
    evil = sha256(b"evil").digest() * 9
    put(store, one)
    path, end = store.path(one.key), threading.Event()

    def replace_files() -> None:
        turn = 0
        while not end.is_set():
            turn += 1
            for name, good in ((ARTIFACT, one.artifact), (MANIFEST, one.manifest)):
                fresh = path.with_name(f"fresh-{turn % 2}")
                with contextlib.suppress(OSError):  # it went into quarantine meanwhile
                    fresh.write_bytes(evil if turn % 2 else good)
                    if not path.exists():
                        put(store, one)
                    os.replace(fresh, path / name)

    attacker = threading.Thread(target=replace_files, daemon=True)
    attacker.start()
    good = wrong = 0
    for _ in range(count):
        found = store.get(one.key)
        if found is not None:
            good += found.artifact == one.artifact
            wrong += found.artifact != one.artifact
    end.set()
    attacker.join()
    return wrong, good


def bundles(subjects: Subjects, count: int, folder: Path) -> int:
    """How many mutated bundles were read."""
    path, wrong = folder / "good.pwb", 0
    members = {"model.json": b"{}", "regions/0.json": b"[]" * 40}
    write_container(path, {"model": "m"}, members, subjects.signer)
    data = path.read_bytes()
    write_container(path, {"model": "evil"}, members)
    unsigned = path.read_bytes()
    for turn in range(count):
        bad = bytearray(data)
        if turn % 5 == 4:
            bad = bytearray(unsigned)
        elif turn % 2:
            bad = bad[: subjects.chaos.randrange(len(bad))]
        else:
            for _ in range(subjects.chaos.randrange(1, 4)):
                bad[subjects.chaos.randrange(len(bad))] ^= subjects.chaos.randrange(1, 256)
        path.write_bytes(bad)
        try:
            # Bytes of zip headers that nobody reads may be anything.
            wrong += read_container(path, subjects.signer) != ({"model": "m"}, members)
        except StoreError:
            continue
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mutations", type=int, nargs="?", default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    begun, count = time.monotonic(), options.mutations

    def tell(done: int) -> None:
        print(f"{done} of {count}, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)

    subjects = Subjects(random.Random(options.seed), edwards=True)
    files, races, containers = count // 50, count // 100, count // 20
    found = in_memory(subjects, count - files - races - containers, tell)
    with tempfile.TemporaryDirectory() as folder:
        wrong_files = in_files(subjects, files, Path(folder) / "store")
        tell(count - races - containers)
        wrong_races, good = replaced_meanwhile(subjects, races, Path(folder) / "race")
        tell(count - containers)
        wrong_bundles = bundles(subjects, containers, Path(folder))
    deserialised = sum(found.values()) + wrong_files + wrong_races + wrong_bundles
    result = {
        "mutations": count,
        "deserialised": deserialised,
        "in_memory": found,
        "in_files": wrong_files,
        "replaced_while_read": wrong_races,
        "read_whole_meanwhile": good,
        "bundles": wrong_bundles,
        "seconds": round(time.monotonic() - begun, 1),
        "seed": options.seed,
    }
    print(json.dumps(result))
    sys.exit(1 if deserialised else 0)


if __name__ == "__main__":
    main()
